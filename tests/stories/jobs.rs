//! Jobs without a person: they sign in with the token that they are given where they run. What they do is what the examples under
//! `deploy/examples` say, word for word.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail, ensure};
use proto::types::Protocol;
use serde_json::{Value, json};
use tests::ensure_eq;
use tests::issuer::{Issuer, PERMIT};
use tests::listener::Listener;
use tests::process::{in_cgroup, wait_for};
use tests::runner::Test;
use tests::sandbox::Cgroup;
use tests::stage::{ADMIN, Plan, SOON, Stage, binary, text};
use tests::workload_api::{Signer, WorkloadApi};

pub(crate) const TESTS: &[Test] = &[
    ("jobs::a_github_job_asks_uses_and_gives_back", a_github_job_asks_uses_and_gives_back),
    ("jobs::a_gitlab_job_asks_uses_and_gives_back", a_gitlab_job_asks_uses_and_gives_back),
    ("jobs::another_repository_gets_nothing", another_repository_gets_nothing),
    ("jobs::a_workload_with_a_certificate_needs_no_token", a_workload_with_a_certificate_needs_no_token),
];

const GITHUB: &str = include_str!("../../deploy/examples/github-actions.yml");
const GITLAB: &str = include_str!("../../deploy/examples/gitlab-ci.yml");
const AUDIENCE: &str = "portcullis.example.com";

/// An installation that believes an issuer, and a place where its jobs run.
struct Ci {
    stage: Stage,
    issuer: Issuer,
    listener: Listener,
    /// The runner's.
    cgroup: Cgroup,
    _folder: tempfile::TempDir,
}

/// An installation, a protected server, and where a workload runs.
fn place(control_plane: &str) -> Result<(Stage, Listener, Cgroup)> {
    let stage = Stage::start_as(Plan { control_plane, ..Plan::default() })?;
    let listener = Listener::start(Protocol::Tcp, (stage.sandbox().address(), 0).into())?;
    let (address, port) = (listener.address().ip().to_string(), format!("tcp/{}", listener.address().port()));
    let admin = stage.cli(ADMIN)?;
    admin.run(&["resource", "add", "db-prod", "--address", &address, "--port", &port])?;
    let cgroup = stage.sandbox().make_cgroup("runner")?;
    let selector = format!("cgroup:{}", cgroup.path);
    admin.run(&["subject", "add", "workload:ci/migrate", "--role", "member", "--selector", &selector])?;
    stage.wait_until_applied()?;
    Ok((stage, listener, cgroup))
}

/// Approves what the job asks for, as soon as it does.
fn approve(stage: &Stage, job: &mut Child) -> Result<()> {
    let admin = stage.cli(ADMIN)?;
    let request = wait_for("the job's request", SOON, || {
        if let Some(status) = job.try_wait()? {
            let mut said = String::new();
            job.stderr.take().context("it has an output")?.read_to_string(&mut said)?;
            bail!("the job has ended ({status}): {said}");
        }
        let requests = admin.json(&["requests"])?;
        Ok(requests.as_array().and_then(|requests| requests.first()).cloned())
    })?;
    ensure_eq!(request["subject"], "workload:ci/migrate");
    admin.run(&["approve", &text(&request, "id")?, "--comment", "go ahead"]).map(drop)
}

impl Ci {
    /// `job`: what the issuer says of it.
    fn open(job: Value) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let issuer = Issuer::start(folder.path(), job)?;
        let control_plane = format!(
            "[[workload_issuer]]\nname = \"ci\"\nissuer = \"{}\"\naudience = \"{AUDIENCE}\"\nca_file = \"{}\"\n\
             [[workload_issuer.subject]]\nid = \"workload:ci/migrate\"\n\
             claims = {{ repository_id = \"74\", environment = \"production\" }}\n",
            issuer.url(),
            issuer.ca_file.display(),
        );
        let (stage, listener, cgroup) = place(&control_plane)?;
        Ok(Self { stage, issuer, listener, cgroup, _folder: folder })
    }

    /// Where the job's steps run, with the program that they use: `./migrate` says whether it gets through.
    fn check_out(&self) -> Result<()> {
        let SocketAddress { ip, port } = SocketAddress::of(&self.listener);
        let script = format!("#!/bin/bash -e\nexec 3<>/dev/tcp/{ip}/{port}\necho migrated\n");
        let path = self.stage.path("migrate");
        fs::write(&path, script)?;
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?)
    }

    /// Begins a step, as a runner does.
    fn step(&self, script: &str, variables: &BTreeMap<String, String>) -> Result<Child> {
        let program = binary("portcullis")?;
        let programs = program.parent().context("has a folder")?.display().to_string();
        let mut command = in_cgroup(&self.cgroup, "/bin/bash");
        command.args(["-e", "-o", "pipefail", "-c", script]).current_dir(self.stage.path("")).env_clear();
        command.env("PATH", format!("{programs}:/usr/bin:/bin")).envs(variables);
        // Neither the example's addresses nor its authorities are there.
        command.env("PORTCULLIS_SERVER", format!("unix:{}", self.stage.path("socket").display()));
        command.env("SSL_CERT_FILE", &self.issuer.ca_file);
        Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    }

    /// The same to its end: what it printed.
    fn run(&self, script: &str, variables: &BTreeMap<String, String>) -> Result<String> {
        finished(self.step(script, variables)?)
    }

    /// What the record tells of the job, from its first sign-in to the end of its grant.
    fn check_record(&self) -> Result<()> {
        let ended =
            self.stage.wait_for_event("the end of the grant", |event| event["event"] == "grant.ended")?;
        ensure_eq!(ended["reason"], "released");
        let events = self.stage.events()?;
        let created = events.iter().find(|event| event["event"] == "request.created");
        let created = created.context("it is on record")?;
        ensure_eq!(
            (&created["actor"], &created["credential"]),
            (&json!("workload:ci/migrate"), &json!("workload"))
        );
        ensure!(events.iter().any(|event| event["event"] == "conn.allow"), "the use is on record");
        Ok(())
    }
}

/// As bash takes it.
struct SocketAddress {
    ip: String,
    port: u16,
}

impl SocketAddress {
    fn of(listener: &Listener) -> Self {
        Self { ip: listener.address().ip().to_string(), port: listener.address().port() }
    }
}

fn finished(job: Child) -> Result<String> {
    let output = job.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{}: {said}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The blocks behind `run: |` of a workflow, in order.
fn steps(workflow: &str) -> Vec<String> {
    let blocks = workflow.split("run: |\n").skip(1);
    let block = |text: &str| {
        let indent = text.len() - text.trim_start_matches(' ').len();
        let lines = text.lines().take_while(|line| line.len() - line.trim_start().len() >= indent);
        lines.filter_map(|line| line.get(indent..)).collect::<Vec<_>>().join("\n")
    };
    blocks.map(block).collect()
}

/// The entries of a GitLab job's `script`, in order.
fn script(pipeline: &str) -> Result<String> {
    let (_, script) = pipeline.split_once("  script:\n").context("the job has a script")?;
    let lines = script.lines().map_while(|line| line.strip_prefix("    - "));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// As GitHub tells a job that may have a token.
fn github_variables(ci: &Ci) -> BTreeMap<String, String> {
    let github_env = ci.stage.path("github.env").display().to_string();
    [
        ("ACTIONS_ID_TOKEN_REQUEST_URL", ci.issuer.token_address()),
        ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", PERMIT.to_owned()),
        ("PORTCULLIS_WORKLOAD_AUDIENCE", AUDIENCE.to_owned()),
        ("GITHUB_RUN_ID", "4711".to_owned()),
        ("GITHUB_ENV", github_env),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// What a step left for those after it.
fn left_behind(path: &Path, variables: &mut BTreeMap<String, String>) -> Result<()> {
    for line in fs::read_to_string(path)?.lines() {
        let (name, value) = line.split_once('=').context("NAME=VALUE")?;
        variables.insert(name.to_owned(), value.to_owned());
    }
    Ok(())
}

/// What GitHub says of a job of repository 74.
fn github_job() -> Value {
    json!({
        "sub": "repo:acme/app:environment:production", "repository": "acme/app", "repository_id": "74",
        "repository_owner_id": "7", "environment": "production", "ref": "refs/heads/main", "run_id": "4711",
        "job_workflow_ref": "acme/app/.github/workflows/migrate.yml@refs/heads/main",
    })
}

fn a_github_job_asks_uses_and_gives_back() -> Result<()> {
    let ci = Ci::open(github_job())?;
    ci.check_out()?;
    let [ask, migrate, give_back] = &steps(GITHUB)[..] else { anyhow::bail!("the example has three steps") };
    let mut variables = github_variables(&ci);
    // 1. Without a grant the kernel refuses the job.
    ensure!(ci.run(migrate, &variables).is_err(), "nobody has let it through");
    // 2. It asks, an approver says yes, and it goes on when its kernel holds the grant.
    let mut asking = ci.step(ask, &variables)?;
    approve(&ci.stage, &mut asking)?;
    finished(asking)?;
    left_behind(&ci.stage.path("github.env"), &mut variables)?;
    // 3. It gets through, and gives back what it had.
    ensure_eq!(ci.run(migrate, &variables)?, "migrated\n");
    ci.run(give_back, &variables)?;
    ensure!(ci.run(migrate, &variables).is_err(), "it has given it back");
    // 4. The record names the job, and by what it was recognised.
    ci.check_record()
}

fn a_gitlab_job_asks_uses_and_gives_back() -> Result<()> {
    let ci = Ci::open(json!({}))?;
    ci.check_out()?;
    let claims = json!({ "sub": "project_path:acme/app:ref_type:branch:ref:main", "repository_id": "74", "environment": "production" });
    let variables = BTreeMap::from([
        ("PORTCULLIS_WORKLOAD_TOKEN".to_owned(), ci.issuer.sign(AUDIENCE, &claims)?),
        ("CI_JOB_ID".to_owned(), "4711".to_owned()),
    ]);
    // 1. The whole script is one shell, and each command signs in with the one token.
    let mut job = ci.step(&script(GITLAB)?, &variables)?;
    approve(&ci.stage, &mut job)?;
    ensure_eq!(finished(job)?.lines().next(), Some("migrated"));
    // 2. What it was granted was given back when the shell ended.
    ci.check_record()
}

fn another_repository_gets_nothing() -> Result<()> {
    // 1. Somebody has made a repository of the same name, after it was given up.
    let ci = Ci::open(
        json!({ "sub": "repo:acme/app:environment:production", "repository": "acme/app", "repository_id": "75", "environment": "production" }),
    )?;
    let steps = steps(GITHUB);
    let said = ci.run(&steps[0], &github_variables(&ci)).expect_err("is refused").to_string();
    ensure!(said.contains("`repository_id` is another one"), "{said}");
    // 2. It is on record, and nobody has asked for anything.
    let refused = ci.stage.wait_for_event("the refusal", |event| event["event"] == "sign_in.refused")?;
    ensure_eq!(refused["reason"], "not_bound");
    let asked = ci.stage.events()?.iter().any(|event| event["event"] == "request.created");
    ensure!(!asked, "nobody has asked");
    Ok(())
}

/// What a Workload API knows its callers by is its own affair: nothing is handed to them but where it is.
fn a_workload_with_a_certificate_needs_no_token() -> Result<()> {
    const ID: &str = "spiffe://prod.example/ns/ci/sa/migrate";
    let folder = tempfile::tempdir()?;
    let signer = Signer::new()?;
    let bundle = folder.path().join("bundle.pem");
    fs::write(&bundle, signer.bundle()?)?;
    let control_plane = format!(
        "[[spiffe_trust_domain]]\nname = \"prod\"\ntrust_domain = \"prod.example\"\nbundle_file = \"{}\"\n\
         [[spiffe_trust_domain.subject]]\nid = \"workload:ci/migrate\"\nspiffe_id = \"{ID}\"\n",
        bundle.display()
    );
    let (stage, listener, cgroup) = place(&control_plane)?;
    let api = WorkloadApi::start(folder.path(), &signer, ID)?;
    let step = |arguments: &[&str], endpoint: &str| -> Result<Child> {
        let mut command = in_cgroup(&cgroup, binary("portcullis")?);
        command
            .args(arguments)
            .env_clear()
            .env("HOME", folder.path())
            .env("SPIFFE_ENDPOINT_SOCKET", endpoint);
        command.env("PORTCULLIS_SERVER", format!("https://{}:7400", stage.sandbox().address()));
        command.env("PORTCULLIS_CA_FILE", stage.path("authority/ca.pem"));
        Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    };
    let connect = format!("exec 3<>/dev/tcp/{}/{}", listener.address().ip(), listener.address().port());
    let gets_through = || -> Result<bool> {
        let output = in_cgroup(&cgroup, "/bin/bash").args(["-c", &connect]).output()?;
        Ok(output.status.success())
    };
    // 1. It asks, an approver says yes, it gets through.
    ensure_eq!(gets_through()?, false);
    let ask = ["request", "db-prod", "--for", "5m", "--reason", "migrate", "--wait", "-o", "json"];
    let mut asking = step(&ask, &api.endpoint())?;
    approve(&stage, &mut asking)?;
    let granted: Value = serde_json::from_str(&finished(asking)?)?;
    ensure_eq!(gets_through()?, true);
    // 2. It gives back what it had.
    finished(step(&["release", &text(&granted, "id")?], &api.endpoint())?)?;
    stage.wait_for_grant(&text(&granted, "id")?, "ended")?;
    ensure_eq!(gets_through()?, false);
    // 3. On record is who it was.
    let signed_in = stage.wait_for_event("the sign-in", |event| event["reason"] == "workload")?;
    ensure!(signed_in["comment"].as_str().is_some_and(|comment| comment.contains(ID)), "{signed_in}");
    // 4. Another workload of the same trust domain is nobody.
    drop(api);
    let other = WorkloadApi::start(folder.path(), &signer, "spiffe://prod.example/ns/ci/sa/other")?;
    let said = finished(step(&["whoami"], &other.endpoint())?).expect_err("is refused").to_string();
    ensure!(said.contains("no subject is bound to `spiffe://prod.example/ns/ci/sa/other`"), "{said}");
    // 5. Where nothing listens, the error says where it was looked for.
    let said =
        finished(step(&["whoami"], "unix:///nowhere/api.sock")?).expect_err("nobody is there").to_string();
    ensure!(said.contains("unix:///nowhere/api.sock"), "{said}");
    Ok(())
}
