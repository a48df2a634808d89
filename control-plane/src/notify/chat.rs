//! What chats are told, as each of them wants it.
//!
//! Owns: the shapes of Slack's and Teams' messages, and that nothing that people wrote is mark-up there. Must not know: ways.
//!
//! Invariant: there is no button that decides anything. Whoever presses one in a chat is whom the chat believes them to be, and not who
//! signs in here; so a message leads to the console, where that is asked.

use serde_json::{Value, json};

use super::message::Summary;

const LEAD: &str = "Open in the console";

/// For an incoming webhook of Slack.
pub(super) fn slack(summary: &Summary) -> Vec<u8> {
    let Summary { title, facts, link } = summary;
    let mut lines = vec![title.clone()];
    lines.extend(facts.iter().map(|(name, text)| format!("{name}: {text}")));
    // Three characters make mentions, links and everything else that acts; the others only look (docs.slack.dev, "Escaping text").
    let text = escaped(&lines.join("\n"));
    let mut blocks =
        vec![json!({ "type": "section", "text": { "type": "plain_text", "text": text, "emoji": false } })];
    if let Some(link) = link {
        let text = format!("<{}|{LEAD}>", escaped(link));
        blocks.push(json!({ "type": "section", "text": { "type": "mrkdwn", "text": text } }));
    }
    let message = json!({
        "text": escaped(title), "blocks": blocks, "mrkdwn": false, "unfurl_links": false, "unfurl_media": false,
    });
    bytes(&message)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// For a workflow of Teams that posts an Adaptive Card.
pub(super) fn teams(summary: &Summary) -> Vec<u8> {
    let Summary { title, facts, link } = summary;
    // Text in a `TextRun` is shown as it is; in a `TextBlock` or `FactSet` it would be Markdown.
    let line = |runs: Vec<Value>| json!({ "type": "RichTextBlock", "inlines": runs });
    let run = |text: &str, weight: &str| json!({ "type": "TextRun", "text": text, "weight": weight });
    let mut body = vec![line(vec![run(title, "bolder")])];
    body.extend(
        facts
            .iter()
            .map(|(name, text)| line(vec![run(&format!("{name}: "), "bolder"), run(text, "default")])),
    );
    let actions: Vec<Value> =
        link.iter().map(|link| json!({ "type": "Action.OpenUrl", "title": LEAD, "url": link })).collect();
    let message = json!({
        "type": "message",
        "attachments": [{
            "contentType": "application/vnd.microsoft.card.adaptive",
            "contentUrl": null,
            "content": {
                "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                "type": "AdaptiveCard",
                "version": "1.4",
                "body": body,
                "actions": actions,
            },
        }],
    });
    bytes(&message)
}

fn bytes(message: &Value) -> Vec<u8> {
    message.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::message::summary;
    use super::super::message::tests::asked;
    use super::*;

    const EVIL: &str = "<!channel> <https://evil.test|console> & *b* [x](https://evil.test) \n`c`";

    fn evil() -> Summary {
        summary(&asked(EVIL), Some("https://console.test"))
    }

    fn value(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).expect("JSON")
    }

    #[test]
    fn how_slack_is_told() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&value(&slack(&evil()))).expect("JSON"));
    }

    #[test]
    fn how_teams_is_told() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&value(&teams(&evil()))).expect("JSON"));
    }

    #[test]
    fn what_people_write_does_nothing() {
        let slack = String::from_utf8(slack(&evil())).expect("text");
        assert_eq!(slack.matches('<').count(), 1, "the link alone: {slack}");
        let teams = value(&teams(&evil()));
        let card = &teams["attachments"][0]["content"];
        for block in card["body"].as_array().expect("blocks") {
            assert_eq!(block["type"], "RichTextBlock");
        }
        let actions = card["actions"].as_array().expect("actions");
        assert!(actions.iter().all(|action| action["type"] == "Action.OpenUrl"), "none that decides");
        assert!(!slack.contains("\"actions\"") && !slack.contains("\"button\""));
    }

    #[test]
    fn without_a_console_there_is_no_link() {
        let summary = summary(&asked("a"), None);
        assert!(!String::from_utf8(slack(&summary)).expect("text").contains("http"));
        assert_eq!(value(&teams(&summary))["attachments"][0]["content"]["actions"], json!([]));
    }
}
