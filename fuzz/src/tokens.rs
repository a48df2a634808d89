//! Tokens of identity providers and issuers: who they say they are of, before anything is proven, and what their claims say after it.

use std::time::Duration;

use control_plane::identity::oidc;
use control_plane::rules::workload::{self, Binding, ClaimPath, Expected, ExpectedAgent, Wanted};
use proto::types::Timestamp;

use crate::choice;

fn now() -> Timestamp {
    Timestamp::from_unix_ms(1_795_000_000_000).expect("in range")
}

pub(crate) fn run(bytes: &[u8]) {
    let Some((which, bytes)) = choice(bytes, 2) else { return };
    match which {
        0 => {
            if let Ok(text) = str::from_utf8(bytes) {
                let _ = oidc::unproven_issuer(text);
            }
        }
        _ => claims(bytes),
    }
}

/// Nobody is let in whose token does not say what was bound, word for word.
fn claims(bytes: &[u8]) {
    let Ok(claims) = serde_json::from_slice::<serde_json::Map<_, _>>(bytes) else { return };
    let wanted = [(ClaimPath::new("/a/b"), Wanted::Text("c".to_owned()))];
    let expected = Expected {
        issuer: "https://issuer.example".to_owned(),
        audience: "portcullis".to_owned(),
        age_max: Duration::from_secs(3600),
        bindings: vec![Binding { subject: "workload:a".parse().expect("valid"), claims: wanted.into() }],
    };
    if workload::check(&claims, &expected, now()).is_ok() {
        assert_eq!(claims["iss"], "https://issuer.example");
        assert_eq!(claims["a"]["b"], "c");
        assert!(claims["exp"].as_f64().is_some_and(|exp| exp > 1_794_999_000.0), "{claims:?}");
    }
    let agent = ExpectedAgent {
        issuer: "https://issuer.example".to_owned(),
        audience: "portcullis".to_owned(),
        namespace: "portcullis".to_owned(),
        service_account: "portcullis-agent".to_owned(),
    };
    let host = "node-1".parse().expect("valid");
    if workload::check_agent(&claims, &agent, &host, now()).is_ok() {
        assert_eq!(claims["kubernetes.io"]["node"]["name"], "node-1");
    }
}
