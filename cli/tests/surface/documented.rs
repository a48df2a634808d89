//! The page for consumers names everything that the program can print.

use proto::types::{EndReason, EventKind};

const PAGE: &str = include_str!("../../../docs/audit-events.md");

/// Consumers read the page, not the code: what can come is on it.
#[test]
fn events_and_their_fields() {
    let names = EventKind::ALL.iter().map(|kind| kind.as_str());
    let reasons = EndReason::ALL.iter().map(|reason| reason.as_str());
    for name in names.chain(reasons) {
        assert!(PAGE.contains(&format!("`{name}`")), "{name} is missing");
    }
    let lines = crate::tail::every_kind().into_iter().map(|event| {
        let event = proto::types::AuditEvent::try_from(event).unwrap();
        serde_json::to_value(proto::json::AuditRow::from(event)).unwrap()
    });
    for line in lines {
        keys(&line);
    }
}

fn keys(value: &serde_json::Value) {
    for (key, value) in value.as_object().into_iter().flatten() {
        assert!(PAGE.contains(&format!("`{key}`")), "{key} is missing");
        keys(value);
    }
}
