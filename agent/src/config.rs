//! The configuration file: TOML to a checked [`Config`].
//!
//! Owns: every default and limit. Unknown fields are refused: a misspelt limit must not silently be another one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use agent_ebpf::{abi, family};
use proto::types::{HostName, Selector};
use serde::Deserialize;

use crate::kernel;
use crate::kubernetes;
use crate::session::{Endpoint, JoinBy};

/// What the agent was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This host's name, as the control plane knows it.
    pub host: HostName,
    /// Where the control plane is, or each of several.
    pub control_plane: Endpoint,
    /// How a host that has not joined yet does so by itself; None: an operator lets it.
    pub join: Option<JoinBy>,
    /// The agent's own directory: the last grant set, events not yet acknowledged.
    pub state_dir: PathBuf,
    /// The gate.
    pub kernel: kernel::Settings,
    /// Whose processes may have sockets of any family.
    pub exempt: Vec<Selector>,
    /// How the API server is asked for this node's pods; None: this host is no node.
    pub kubernetes: Option<kubernetes::Settings>,
    /// How much of the disk events may take.
    pub spool_max_bytes: u64,
    /// The socket by which programs on this host run commands as subjects; None: there is none.
    pub runs_socket: Option<PathBuf>,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no TOML, lacks a field or has one that is unknown.
    #[error("cannot use the configuration {path}", path = path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value breaks a rule.
    #[error("cannot use `{field}` of the configuration {path}: {problem}", path = path.display())]
    Value {
        /// Which file.
        path: PathBuf,
        /// Which field.
        field: &'static str,
        /// The value, and the rule.
        problem: String,
    },
}

/// A text, or a list of texts.
#[derive(Deserialize)]
#[serde(untagged, expecting = "`control_plane` is `\"https://HOST:PORT\"`, or a list of such texts")]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    fn texts(&self) -> impl Iterator<Item = &str> {
        let texts = match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::More(texts) => texts,
        };
        texts.iter().map(String::as_str)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    host: Option<String>,
    control_plane: OneOrMore,
    join_token_file: Option<PathBuf>,
    join: Option<JoinFile>,
    state_dir: PathBuf,
    #[serde(default)]
    kernel: KernelFile,
    kubernetes: Option<KubernetesFile>,
    #[serde(default)]
    spool: SpoolFile,
    #[serde(default)]
    runs: RunsFile,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JoinFile {
    kubernetes_token_file: PathBuf,
    authority_fingerprint: String,
}

/// The two ways to join exclude each other.
fn join(
    token_file: Option<PathBuf>,
    section: Option<JoinFile>,
) -> Result<Option<JoinBy>, (&'static str, String)> {
    let absolute = |field, path: PathBuf| match path.is_absolute() {
        true => Ok(path),
        false => Err((field, format!("`{}` is not an absolute path", path.display()))),
    };
    match (token_file, section) {
        (None, None) => Ok(None),
        (Some(path), None) => Ok(Some(JoinBy::TokenFile(absolute("join_token_file", path)?))),
        (None, Some(section)) => {
            let authority = section.authority_fingerprint.parse();
            let authority = authority
                .map_err(|error: proto::types::Invalid| ("join.authority_fingerprint", error.to_string()))?;
            let token_file = absolute("join.kubernetes_token_file", section.kubernetes_token_file)?;
            Ok(Some(JoinBy::Kubernetes { token_file, authority }))
        }
        (Some(path), Some(_)) => {
            let problem = format!("`{}` is there beside `[join]`: a host joins in one way", path.display());
            Err(("join_token_file", problem))
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct KernelFile {
    pin_dir: PathBuf,
    subjects_max: u32,
    grants_max: u32,
    resources_max: u32,
    connections_max: u32,
    ring_bytes: u32,
    lsm: DemandFile,
    lsm_families: Vec<String>,
    lsm_exempt: Vec<String>,
    tamper: DemandFile,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DemandFile {
    Off,
    Prefer,
    Require,
}

impl From<DemandFile> for kernel::Demand {
    fn from(demand: DemandFile) -> Self {
        match demand {
            DemandFile::Off => Self::Off,
            DemandFile::Prefer => Self::Prefer,
            DemandFile::Require => Self::Require,
        }
    }
}

/// Whoever gets the host its addresses writes packets itself.
const EXEMPT: [&str; 4] = [
    "cgroup:/system.slice/systemd-networkd.service",
    "cgroup:/system.slice/NetworkManager.service",
    "cgroup:/system.slice/networking.service",
    "cgroup:/system.slice/dhcpcd.service",
];

impl Default for KernelFile {
    fn default() -> Self {
        Self {
            pin_dir: "/sys/fs/bpf/portcullis".into(),
            subjects_max: abi::SUBJECTS_MAX,
            grants_max: abi::GRANTS_MAX,
            resources_max: abi::RESOURCES_MAX,
            connections_max: abi::CONNECTIONS_MAX,
            ring_bytes: abi::RING_BYTES,
            lsm: DemandFile::Off,
            lsm_families: Vec::new(),
            lsm_exempt: EXEMPT.map(str::to_owned).to_vec(),
            tamper: DemandFile::Off,
        }
    }
}

/// Where Kubernetes puts what a pod needs to ask the API server.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct KubernetesFile {
    api_server: Option<String>,
    token_file: PathBuf,
    ca_file: PathBuf,
    node: Option<String>,
}

impl Default for KubernetesFile {
    fn default() -> Self {
        let directory = Path::new(SERVICE_ACCOUNT);
        let (token_file, ca_file) = (directory.join("token"), directory.join("ca.crt"));
        Self { api_server: None, token_file, ca_file, node: None }
    }
}

impl KubernetesFile {
    /// `variable` is one of the agent's environment, where Kubernetes says where its API server is. `host` is the host's name.
    fn settings(
        self,
        host: &str,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<kubernetes::Settings, (&'static str, String)> {
        let of_pod = || {
            let (host, port) = (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
            let host = if host.contains(':') { format!("[{host}]") } else { host };
            Some(format!("https://{host}:{port}"))
        };
        let refuse = |problem: &str| ("kubernetes.api_server", problem.to_owned());
        let text = self.api_server.or_else(of_pod);
        let text = text.ok_or_else(|| refuse("is missing, and this is no pod, which is told: name it"))?;
        let api_server = text.parse::<reqwest::Url>().ok();
        let is_whole = |url: &reqwest::Url| {
            url.scheme() == "https" && url.has_host() && url.path() == "/" && url.query().is_none()
        };
        let api_server = api_server
            .filter(is_whole)
            .ok_or_else(|| refuse(&format!("`{text}` is not `https://HOST:PORT`")))?;
        let node = self.node.or_else(|| variable("NODE_NAME")).unwrap_or_else(|| host.to_owned());
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        if node.is_empty() || node.len() > 253 || !node.bytes().all(allowed) {
            return Err(("kubernetes.node", format!("`{}` is no name of a node", node.escape_debug())));
        }
        let absolute = |field, path: PathBuf| match path.is_absolute() {
            true => Ok(path),
            false => Err((field, format!("`{}` is not an absolute path", path.display()))),
        };
        let token_file = absolute("kubernetes.token_file", self.token_file)?;
        let ca_file = absolute("kubernetes.ca_file", self.ca_file)?;
        Ok(kubernetes::Settings { api_server, token_file, ca_file, node })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RunsFile {
    enabled: bool,
    socket: PathBuf,
}

impl Default for RunsFile {
    /// Where the unit and the DaemonSet make the directory, and `portcullis run` looks.
    fn default() -> Self {
        Self { enabled: true, socket: "/run/portcullis-agent/runs.sock".into() }
    }
}

/// The longest path that a unix socket can have, in bytes.
const SOCKET_PATH_MAX_BYTES: usize = 107;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SpoolFile {
    max_bytes: u64,
}

impl Default for SpoolFile {
    /// Some 250,000 events.
    fn default() -> Self {
        Self { max_bytes: 64 * 1024 * 1024 }
    }
}

/// The most entries of a map. Each takes some 100 bytes of kernel memory that cannot be swapped.
const ENTRIES_MAX: u32 = 1 << 20;
/// A ring is mapped whole into the agent.
const RING_BYTES_MAX: u32 = 1 << 28;
/// A page, the least that the kernel takes.
const RING_BYTES_MIN: u32 = 4096;
/// Room for a few segments of the spool.
const SPOOL_BYTES_MIN: u64 = 4 * 1024 * 1024;

impl Config {
    /// Reads and checks the file. `hostname` is this machine's, for when the file names none.
    pub fn load(path: &Path, hostname: impl FnOnce() -> String) -> Result<Self, ConfigError> {
        Self::load_in(path, hostname, |name| std::env::var(name).ok())
    }

    /// The same in an environment of these variables.
    pub fn load_in(
        path: &Path,
        hostname: impl FnOnce() -> String,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text, hostname, variable)
    }

    /// The same of a text that was read from `path`.
    pub fn parse(
        path: &Path,
        text: &str,
        hostname: impl FnOnce() -> String,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        let refuse = |field: &'static str, problem: String| ConfigError::Value {
            path: path.to_owned(),
            field,
            problem,
        };
        let within = |field, value: u32, min: u32, max: u32| match (min..=max).contains(&value) {
            true => Ok(value),
            false => Err(refuse(field, format!("{value} is not in {min}..={max}"))),
        };
        let absolute = |field, path: PathBuf| match path.is_absolute() {
            true => Ok(path),
            false => Err(refuse(field, format!("`{}` is not an absolute path", path.display()))),
        };
        let runs_socket = absolute("runs.socket", file.runs.socket)?;
        if runs_socket.as_os_str().len() > SOCKET_PATH_MAX_BYTES {
            let problem = format!("`{}` has more than {SOCKET_PATH_MAX_BYTES} bytes", runs_socket.display());
            return Err(refuse("runs.socket", problem));
        }
        let runs_socket = file.runs.enabled.then_some(runs_socket);
        let kernel = file.kernel;
        if !kernel.ring_bytes.is_power_of_two() {
            return Err(refuse("kernel.ring_bytes", format!("{} is not a power of two", kernel.ring_bytes)));
        }
        if file.spool.max_bytes < SPOOL_BYTES_MIN {
            let problem = format!("{} is less than {SPOOL_BYTES_MIN}", file.spool.max_bytes);
            return Err(refuse("spool.max_bytes", problem));
        }
        let exempt = kernel.lsm_exempt.iter().map(|text| text.parse());
        let exempt: Vec<Selector> = exempt
            .collect::<Result<_, _>>()
            .map_err(|error: proto::types::Invalid| refuse("kernel.lsm_exempt", error.problem))?;
        if exempt.len() > abi::EXEMPT_CGROUPS_MAX as usize {
            let problem = format!("{} are more than {}", exempt.len(), abi::EXEMPT_CGROUPS_MAX);
            return Err(refuse("kernel.lsm_exempt", problem));
        }
        let families =
            families(&kernel.lsm_families).map_err(|problem| refuse("kernel.lsm_families", problem))?;
        // A host that joins with a cluster's word is the node that the cluster knows, whatever the machine calls itself.
        let node = file.join.as_ref().and_then(|_| variable("NODE_NAME"));
        let host = file.host.or(node).unwrap_or_else(hostname);
        let kubernetes = file.kubernetes.map(|section| section.settings(&host, variable));
        let kubernetes = kubernetes.transpose().map_err(|(field, problem)| refuse(field, problem))?;
        Ok(Self {
            host: host.parse().map_err(|error: proto::types::Invalid| refuse("host", error.problem))?,
            control_plane: Endpoint::new(file.control_plane.texts())
                .map_err(|problem| refuse("control_plane", problem))?,
            join: join(file.join_token_file, file.join).map_err(|(field, problem)| refuse(field, problem))?,
            state_dir: absolute("state_dir", file.state_dir.clone())?,
            kernel: kernel::Settings {
                pin_dir: absolute("kernel.pin_dir", kernel.pin_dir)?,
                abi_version: abi::ABI_VERSION,
                subjects_max: within("kernel.subjects_max", kernel.subjects_max, 1, ENTRIES_MAX)?,
                grants_max: within("kernel.grants_max", kernel.grants_max, 1, ENTRIES_MAX)?,
                resources_max: within("kernel.resources_max", kernel.resources_max, 1, ENTRIES_MAX)?,
                connections_max: within("kernel.connections_max", kernel.connections_max, 1, ENTRIES_MAX)?,
                ring_bytes: within("kernel.ring_bytes", kernel.ring_bytes, RING_BYTES_MIN, RING_BYTES_MAX)?,
                lsm: kernel::LsmSettings {
                    demand: kernel.lsm.into(),
                    families,
                    ..kernel::LsmSettings::default()
                },
                scratch_dir: file.state_dir,
                tamper: kernel.tamper.into(),
            },
            exempt,
            kubernetes,
            spool_max_bytes: file.spool.max_bytes,
            runs_socket,
        })
    }
}

/// The usual families, and these.
fn families(names: &[String]) -> Result<u64, String> {
    names.iter().try_fold(family::USUAL, |families, name| match family::by_name(name) {
        Some(family::PACKET | family::XDP) => {
            Err(format!("`{name}` is what is to be refused: name in `lsm_exempt` who may have it"))
        }
        Some(number) => Ok(families | family::set_of(number)),
        None => Err(format!("`{name}` is no address family: one is `vsock`")),
    })
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    const LEAST: &str = r#"
        control_plane = "https://127.0.0.1:7400"
        state_dir = "/var/lib/portcullis-agent"
    "#;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("agent.toml"), text, || "db-7".to_owned(), |_| None)
    }

    #[track_caller]
    fn refused(text: &str, part: &str) {
        let error = parse(text).expect_err("must be refused");
        let chain = format!("{error}: {}", error.source().map(ToString::to_string).unwrap_or_default());
        assert!(chain.contains(part), "{chain}");
    }

    #[test]
    fn the_least_is_enough() {
        let config = parse(LEAST).expect("valid");
        assert_eq!(config.host.as_str(), "db-7");
        let defaults = kernel::Settings::new("/sys/fs/bpf/portcullis".into());
        assert_eq!(config.kernel, kernel::Settings { scratch_dir: config.state_dir, ..defaults });
    }

    #[test]
    fn the_lsm_tier_is_opted_into() {
        let lsm = |text: &str| parse(&format!("{LEAST}\n[kernel]\n{text}")).expect("valid");
        assert_eq!(parse(LEAST).expect("valid").exempt.len(), EXEMPT.len());
        let config = lsm("lsm = \"prefer\"\nlsm_families = [\"vsock\"]\nlsm_exempt = [\"unix-user:0\"]");
        assert_eq!(config.kernel.lsm.demand, kernel::Demand::Prefer);
        assert_eq!(config.kernel.lsm.families, family::USUAL | family::set_of(family::VSOCK));
        assert_eq!(config.exempt, ["unix-user:0".parse().expect("valid")]);
        assert_eq!(lsm("lsm = \"require\"").kernel.lsm.demand, kernel::Demand::Require);
        assert_eq!(lsm("tamper = \"prefer\"").kernel.tamper, kernel::Demand::Prefer);
    }

    #[test]
    fn runs_have_a_socket_unless_they_are_not_wanted() {
        let socket = |text: &str| parse(&format!("{LEAST}\n[runs]\n{text}")).expect("valid").runs_socket;
        let standard = Some(PathBuf::from("/run/portcullis-agent/runs.sock"));
        assert_eq!(parse(LEAST).expect("valid").runs_socket, standard);
        assert_eq!(socket(""), standard);
        assert_eq!(socket("socket = \"/a/b\""), Some("/a/b".into()));
        assert_eq!(socket("enabled = false"), None);
        refused(&format!("{LEAST}\n[runs]\nsocket = \"a\""), "`a` is not an absolute path");
        refused(&format!("{LEAST}\n[runs]\nsocket = \"/{}\"", "a".repeat(107)), "more than 107 bytes");
    }

    #[track_caller]
    fn kubernetes(text: &str, variables: &[(&str, &str)]) -> Result<kubernetes::Settings, String> {
        let file: KubernetesFile = toml::from_str(text).expect("valid");
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        file.settings("db-7", variable).map_err(|(field, problem)| format!("{field} {problem}"))
    }

    #[test]
    fn a_pod_is_told_where_its_api_server_is() {
        let told = [("KUBERNETES_SERVICE_HOST", "10.0.0.1"), ("KUBERNETES_SERVICE_PORT", "443")];
        let settings = kubernetes("", &told).expect("told");
        assert_eq!(settings.api_server.as_str(), "https://10.0.0.1/");
        assert_eq!(settings.ca_file, Path::new(SERVICE_ACCOUNT).join("ca.crt"));
        assert_eq!(settings.node, "db-7");
        let ipv6 = [
            ("KUBERNETES_SERVICE_HOST", "fd00::1"),
            ("KUBERNETES_SERVICE_PORT", "6443"),
            ("NODE_NAME", "n1"),
        ];
        let settings = kubernetes("", &ipv6).expect("told");
        assert_eq!((settings.api_server.as_str(), settings.node.as_str()), ("https://[fd00::1]:6443/", "n1"));
        let written = "api_server = \"https://api.example:6443\"\nnode = \"n2\"";
        let settings = kubernetes(written, &ipv6).expect("written");
        assert_eq!(
            (settings.api_server.as_str(), settings.node.as_str()),
            ("https://api.example:6443/", "n2")
        );

        let refused = |text: &str, part: &str| {
            let problem = kubernetes(text, &[]).expect_err("must be refused");
            assert!(problem.contains(part), "{problem}");
        };
        refused("", "kubernetes.api_server is missing");
        refused("api_server = \"http://10.0.0.1\"", "`http://10.0.0.1` is not `https://HOST:PORT`");
        refused("api_server = \"https://10.0.0.1/prefix\"", "is not `https://HOST:PORT`");
        let api = "api_server = \"https://10.0.0.1\"\n";
        refused(&format!("{api}node = \"a,b\""), "kubernetes.node `a,b`");
        refused(&format!("{api}token_file = \"token\""), "kubernetes.token_file `token`");
        assert_eq!(parse(LEAST).expect("valid").kubernetes, None);
    }

    #[test]
    fn a_host_joins_by_itself_in_one_way() {
        let authority = "ab".repeat(32);
        let section = format!(
            "[join]\nkubernetes_token_file = \"/run/token\"\nauthority_fingerprint = \"{authority}\""
        );
        assert_eq!(parse(LEAST).expect("valid").join, None);
        let by_file = parse(&format!("join_token_file = \"/a\"\n{LEAST}")).expect("valid").join;
        assert_eq!(by_file, Some(JoinBy::TokenFile("/a".into())));
        let join = parse(&format!("{LEAST}\n{section}")).expect("valid").join;
        let authority = authority.parse().expect("valid");
        assert_eq!(join, Some(JoinBy::Kubernetes { token_file: "/run/token".into(), authority }));
        refused(&format!("join_token_file = \"/a\"\n{LEAST}\n{section}"), "joins in one way");
        refused(&format!("{LEAST}\n{}", section.replace("abab", "xx")), "`join.authority_fingerprint`");
        refused(
            &format!("{LEAST}\n{}", section.replace("/run", "run")),
            "`run/token` is not an absolute path",
        );
        refused(&format!("{LEAST}\n[join]\nkubernetes_token_file = \"/t\""), "authority_fingerprint");
    }

    #[test]
    fn each_mistake_is_named() {
        refused("", "missing field `control_plane`");
        refused(&format!("{LEAST}\nspol = 1"), "unknown field `spol`");
        refused(&format!("{LEAST}\n[kernel]\ngrant_max = 1"), "unknown field `grant_max`");
        refused(&format!("{LEAST}\n[kernel]\ngrants_max = 0"), "`kernel.grants_max`");
        refused(&format!("{LEAST}\n[kernel]\ngrants_max = 9999999"), "9999999 is not in 1..=1048576");
        refused(&format!("{LEAST}\n[kernel]\nring_bytes = 5000"), "5000 is not a power of two");
        refused(&format!("{LEAST}\n[kernel]\nring_bytes = 1024"), "1024 is not in 4096..=");
        refused(&format!("{LEAST}\n[kernel]\npin_dir = \"bpf\""), "`bpf` is not an absolute path");
        refused(&format!("{LEAST}\n[spool]\nmax_bytes = 1"), "1 is less than");
        refused(&format!("{LEAST}\n[kernel]\nlsm = true"), "lsm = true");
        refused(&format!("{LEAST}\n[kernel]\nlsm_families = [\"tcp\"]"), "`tcp` is no address family");
        refused(&format!("{LEAST}\n[kernel]\nlsm_families = [\"packet\"]"), "`lsm_exempt`");
        refused(&format!("{LEAST}\n[kernel]\nlsm_exempt = [\"/a\"]"), "`kernel.lsm_exempt`");
        refused(&format!("host = \"A B\"\n{LEAST}"), "`A B` is not a name");
        refused(&LEAST.replace("https:", "http:"), "`http://127.0.0.1:7400` is not `https://HOST:PORT`");
        refused(&format!("join_token_file = \"a\"\n{LEAST}"), "`join_token_file`");
        refused("control_plane = [", "cannot use the configuration agent.toml");
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}") {
            let _ = parse(&text);
        }
    }
}
