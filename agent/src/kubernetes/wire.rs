//! What the API server says of pods: JSON to checked types.
//!
//! Owns: which fields are read. Must not know: how the text came.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::rules::layouts::PodUid;
use crate::rules::pods::{Pod, PodsChange};

/// A page of a list.
#[derive(Debug)]
pub struct Page {
    /// Of this node.
    pub pods: Vec<Pod>,
    /// What a watch goes on from.
    pub version: String,
    /// By which the next page is asked for; empty: this was the last.
    pub continues: String,
}

/// A line of a watch.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A change, and what a watch goes on from after it; None: of no pod of ours, or of none at all.
    Change(Option<PodsChange>, String),
    /// The version to go on from is not kept any more.
    Expired,
    /// The API server says why it says nothing more.
    Refused(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListWire {
    metadata: ListMetadata,
    #[serde(default)]
    items: Vec<Object>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    resource_version: String,
    #[serde(default, rename = "continue")]
    continues: Option<String>,
}

#[derive(Deserialize)]
struct LineWire {
    r#type: String,
    object: Object,
}

/// A pod; of a bookmark only its version is there, of an error only the last two.
#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    uid: String,
    namespace: String,
    resource_version: String,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    service_account_name: Option<String>,
    node_name: Option<String>,
}

impl Page {
    /// What of it is of this node's pods. An error says what is wrong with it.
    pub fn parse(body: &[u8], node: &str) -> Result<Self, String> {
        let list: ListWire =
            serde_json::from_slice(body).map_err(|error| format!("no list of pods: {error}"))?;
        let pods = list.items.into_iter().filter_map(|object| object.pod(node)).collect();
        let continues = list.metadata.continues.unwrap_or_default();
        Ok(Self { pods, version: list.metadata.resource_version, continues })
    }
}

impl Line {
    /// As of a page.
    pub fn parse(line: &[u8], node: &str) -> Result<Self, String> {
        let LineWire { r#type, object } =
            serde_json::from_slice(line).map_err(|error| format!("no change of a pod: {error}"))?;
        let version = object.metadata.resource_version.clone();
        if r#type == "ERROR" {
            return Ok(match object.code {
                410 => Self::Expired,
                code => Self::Refused(format!("{code} {}", object.message.escape_debug())),
            });
        }
        if version.is_empty() {
            return Err("a change without a version".to_owned());
        }
        let change = match r#type.as_str() {
            "ADDED" | "MODIFIED" => object.pod(node).map(PodsChange::Applied),
            "DELETED" => PodUid::parse(&object.metadata.uid).map(PodsChange::Deleted),
            "BOOKMARK" => None,
            kind => return Err(format!("a change of the kind `{}`", kind.escape_debug())),
        };
        Ok(Self::Change(change, version))
    }
}

impl Object {
    /// The pod, if it is one of this node.
    fn pod(self, node: &str) -> Option<Pod> {
        let uid = PodUid::parse(&self.metadata.uid)?;
        (self.spec.node_name.as_deref() == Some(node)).then(|| Pod {
            uid,
            namespace: self.metadata.namespace,
            service_account: self.spec.service_account_name.unwrap_or_default(),
            labels: self.metadata.labels.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    fn pod_json(node: &str) -> String {
        format!(
            r#"{{"kind":"Pod","apiVersion":"v1","metadata":{{"name":"a","namespace":"prod","uid":"{UID}","resourceVersion":"7",
            "labels":{{"app":"web"}},"managedFields":[{{"x":1}}]}},"spec":{{"nodeName":"{node}","serviceAccountName":"web",
            "containers":[]}},"status":{{"phase":"Running"}}}}"#
        )
    }

    fn pod() -> Pod {
        Pod {
            uid: PodUid::parse(UID).expect("valid"),
            namespace: "prod".to_owned(),
            service_account: "web".to_owned(),
            labels: [("app".to_owned(), "web".to_owned())].into(),
        }
    }

    #[track_caller]
    fn reads(kind: &str, object: &str, line: Line) {
        let text = format!(r#"{{"type":"{kind}","object":{object}}}"#);
        assert_eq!(Line::parse(text.as_bytes(), "node-1"), Ok(line));
    }

    #[test]
    fn lines_are_what_they_say() {
        let change = |change: Option<PodsChange>| Line::Change(change, "7".to_owned());
        let applied = || change(Some(PodsChange::Applied(pod())));
        reads("ADDED", &pod_json("node-1"), applied());
        reads("MODIFIED", &pod_json("node-1"), applied());
        reads("MODIFIED", &pod_json("node-2"), change(None));
        reads("DELETED", &pod_json("node-1"), change(Some(PodsChange::Deleted(pod().uid))));
        reads("BOOKMARK", r#"{"kind":"Pod","metadata":{"resourceVersion":"7"}}"#, change(None));
        reads("ERROR", r#"{"kind":"Status","code":410,"reason":"Expired"}"#, Line::Expired);
        let told = Line::Refused("500 oh\\n".to_owned());
        reads("ERROR", r#"{"kind":"Status","code":500,"message":"oh\n"}"#, told);
        for bad in ["", "{}", "[]", r#"{"type":"ADDED"}"#, r#"{"type":"ADDED","object":{}}"#, "nonsense"] {
            assert!(Line::parse(bad.as_bytes(), "node-1").is_err(), "{bad}");
        }
    }

    #[test]
    fn pages_say_how_they_go_on() {
        let items = [pod_json("node-1"), pod_json("node-2")].join(",");
        let body = format!(r#"{{"metadata":{{"resourceVersion":"9","continue":"more"}},"items":[{items}]}}"#);
        let page = Page::parse(body.as_bytes(), "node-1").expect("valid");
        assert_eq!(
            (page.pods, page.version, page.continues),
            (vec![pod()], "9".to_owned(), "more".to_owned())
        );
        let last =
            Page::parse(br#"{"metadata":{"resourceVersion":"9"},"items":[]}"#, "node-1").expect("valid");
        assert!(last.continues.is_empty());
        assert!(Page::parse(br#"{"items":[]}"#, "node-1").is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}") {
            let _ = Line::parse(text.as_bytes(), "node-1");
            let _ = Page::parse(text.as_bytes(), "node-1");
        }
    }
}
