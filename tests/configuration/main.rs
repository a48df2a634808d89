//! The example configurations under `deploy/` are taken by the programs that they are for.

use std::fs;
use std::path::{Path, PathBuf};

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

#[test]
fn the_agents_example_is_usable() {
    let config =
        agent::config::Config::load(&deploy("etc/agent.toml"), || "db-7".to_owned()).expect("usable");
    let mut defaults = agent::kernel::Settings::new("/sys/fs/bpf/portcullis".into());
    defaults.scratch_dir = "/var/lib/portcullis-agent".into();
    assert_eq!(config.kernel, defaults, "the example shows the defaults");
}

#[test]
fn the_control_planes_example_is_usable() {
    control_plane::config::Config::read(&deploy("etc/control-plane.toml")).expect("usable");
}

/// The file within the DaemonSet's ConfigMap: the block behind its name, without the indentation.
#[test]
fn the_daemon_sets_configuration_is_usable() {
    let manifest = fs::read_to_string(deploy("kubernetes/daemonset.yaml")).expect("readable");
    let (_, block) = manifest.split_once("agent.toml: |\n").expect("the ConfigMap has an agent.toml");
    let indent = block.len() - block.trim_start_matches(' ').len();
    let lines = block.lines().take_while(|line| line.is_empty() || line.starts_with(&" ".repeat(indent)));
    let text: Vec<&str> = lines.map(|line| line.get(indent..).unwrap_or("")).collect();
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("agent.toml");
    fs::write(&path, text.join("\n")).expect("written");
    // As it is in a pod.
    let variable = |name: &str| match name {
        "KUBERNETES_SERVICE_HOST" => Some("10.96.0.1".to_owned()),
        "KUBERNETES_SERVICE_PORT" => Some("443".to_owned()),
        "NODE_NAME" => Some("node-1.example".to_owned()),
        _ => None,
    };
    let config = agent::config::Config::load_in(&path, || "node-1".to_owned(), variable).expect("usable");
    assert_eq!(config.host.as_str(), "node-1.example");
    let Some(agent::session::JoinBy::Kubernetes { token_file, .. }) = config.join else {
        panic!("a node joins with its pod's token: {:?}", config.join);
    };
    assert!(manifest.contains(&format!("mountPath: {}", token_file.parent().expect("a folder").display())));
    let kubernetes = config.kubernetes.expect("the agent asks for pods");
    assert_eq!(
        (kubernetes.api_server.as_str(), kubernetes.node.as_str()),
        ("https://10.96.0.1/", "node-1.example")
    );
}
