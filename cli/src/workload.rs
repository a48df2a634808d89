//! A job without a person: where its token or certificate comes from, and the session that it gets for it.
//!
//! Owns: that choice, and the questions to GitHub Actions and to a SPIFFE Workload API. Must not know: the environment, files of people.
//!
//! Invariants: a token goes to the control plane that was named and nowhere else. For whom it is, is said here and never by who
//! will get it: else a control plane could ask for one that is good elsewhere.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::types::{ID_TOKEN_MAX_BYTES, SubjectIdentity, WorkloadToken};
use proto::wire::identity::{SignInWithCertificateRequest, SignInWorkloadRequest};
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde::Deserialize;
use spiffe::WorkloadApiClient;
use tokio::time::timeout;
use url::Url;

use crate::connect::{ClientCertificate, call, certified, newcomer};
use crate::credentials::{Credentials, Session, Token};
use crate::error::{Error, Problem};
use crate::oidc::{self, Fault};
use crate::renew::ends_here;
use crate::{Context, Place};

/// For whom a token is asked for unless told otherwise.
const AUDIENCE_DEFAULT: &str = "portcullis";

/// It is on this machine, or as good as.
const WORKLOAD_API_LIMIT: Duration = Duration::from_secs(10);

/// What a job's environment says of its tokens.
#[derive(Clone, Default)]
pub struct Job {
    /// A token itself.
    pub token: Option<String>,
    /// For whom one is asked for; None: for `portcullis`.
    pub audience: Option<String>,
    /// Where GitHub Actions gives one, and what to show there.
    pub github: Option<(String, String)>,
    /// Where a SPIFFE Workload API is (`unix:///PATH` or `tcp://ADDRESS:PORT`), which knows its callers by itself.
    pub spiffe: Option<String>,
}

impl fmt::Debug for Job {
    /// Without what is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("audience", &self.audience).finish_non_exhaustive()
    }
}

/// Where a job's token comes from, or its certificate.
pub(crate) enum Source {
    /// A file; `-`: standard input.
    File(PathBuf),
    /// The environment.
    Text(String),
    /// GitHub Actions: where, what to show there, and for whom.
    GitHub { address: String, permit: String, audience: String },
    /// A SPIFFE Workload API: an X.509-SVID.
    Spiffe(String),
}

/// What a job proves itself by.
enum Proof {
    Token(WorkloadToken),
    Certificate(ClientCertificate),
}

impl Source {
    /// The job's own token, as far as it was told; None: nothing was.
    pub(crate) fn told(file: Option<&PathBuf>, job: &Job) -> Option<Self> {
        let text = || job.token.clone().map(Self::Text);
        file.cloned().map(Self::File).or_else(text)
    }

    /// What GitHub Actions offers to a job that may have a token, or a Workload API to everything that runs there.
    pub(crate) fn offered(job: &Job) -> Option<Self> {
        let Some((address, permit)) = job.github.clone() else { return job.spiffe.clone().map(Self::Spiffe) };
        let audience = job.audience.clone().unwrap_or_else(|| AUDIENCE_DEFAULT.to_owned());
        Some(Self::GitHub { address, permit, audience })
    }

    /// Whether it gives a token more than once.
    pub(crate) fn lasts(&self) -> bool {
        !matches!(self, Self::File(path) if path.as_os_str() == "-")
    }

    async fn proof(&self, input: &mut dyn Read) -> Result<Proof, Error> {
        match self {
            Self::File(path) => read(path, input).map(Proof::Token),
            Self::Text(text) => text.parse().map(Proof::Token).map_err(|error: proto::types::Invalid| {
                Error::Usage(format!("PORTCULLIS_WORKLOAD_TOKEN: {}", error.problem))
            }),
            Self::GitHub { address, permit, audience } => {
                github(address, permit, audience).await.map(Proof::Token)
            }
            Self::Spiffe(endpoint) => spiffe(endpoint).await.map(Proof::Certificate),
        }
    }
}

/// Signs in at the control plane for this call, or for those to come.
pub(crate) async fn sign_in(
    context: &mut Context<'_>,
    source: &Source,
) -> Result<(Credentials, SubjectIdentity), Error> {
    let Place { server, authorities, .. } = context.place()?;
    let proof = source.proof(context.surroundings.input).await?;
    let what = format!("sign in at `{server}`");
    let malformed = |source: Problem| Error::Malformed { what: what.clone(), source };
    let (token, identity) = match proof {
        Proof::Token(token) => {
            let message = SignInWorkloadRequest::from(token);
            let mut client = newcomer(&server, authorities.as_ref()).await?;
            let answer = call(&what, client.sign_in_workload(message)).await?;
            (answer.token, answer.identity)
        }
        Proof::Certificate(certificate) => {
            let mut client = certified(&server, authorities.as_ref(), certificate).await?;
            let answer =
                call(&what, client.sign_in_with_certificate(SignInWithCertificateRequest {})).await?;
            (answer.token, answer.identity)
        }
    };
    let identity: SubjectIdentity = crate::commands::checked(&what, identity)?;
    let Some(sign_in) = &identity.sign_in else {
        return Err(malformed(Problem("the answer breaks the contract: it is of no session".to_owned())));
    };
    let token = Token::new(&token).map_err(malformed)?;
    let expires = ends_here(sign_in, (context.surroundings.now)());
    let session = Some(Session::of_workload(&sign_in.provider, expires));
    Ok((Credentials { server, token, authorities, session }, identity))
}

fn read(path: &Path, input: &mut dyn Read) -> Result<WorkloadToken, Error> {
    let what = "workload token";
    let mut text = String::new();
    // One byte above the limit, white space aside, shows that it is exceeded.
    let limit = ID_TOKEN_MAX_BYTES as u64 + 64;
    match path.as_os_str() == OsStr::new("-") {
        true => input.take(limit).read_to_string(&mut text),
        false => File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text)),
    }
    .map_err(|source| Error::ReadFile { what, path: path.to_owned(), source })?;
    let refused = |error: proto::types::Invalid| Problem(format!("the token {}", error.problem));
    text.parse().map_err(|error| Error::BadFile { what, path: path.to_owned(), source: refused(error) })
}

/// Asks GitHub Actions, as its documentation says.
async fn github(address: &str, permit: &str, audience: &str) -> Result<WorkloadToken, Error> {
    #[derive(Deserialize)]
    struct Given {
        value: String,
    }

    let failed = |source| Error::Provider { what: "get a token from GitHub Actions".to_owned(), source };
    let mut url: Url = address.parse().map_err(|_| {
        Error::Usage("ACTIONS_ID_TOKEN_REQUEST_URL is no URL; GitHub Actions sets it".to_owned())
    })?;
    url.query_pairs_mut().append_pair("audience", audience);
    let given: Given = oidc::ask_with(&url, permit).await.map_err(failed)?;
    given.value.parse().map_err(|error: proto::types::Invalid| {
        failed(Fault::Malformed { address: shown(&url), problem: format!("its token {}", error.problem) })
    })
}

/// Asks a Workload API for this process's certificate: the first, if there are several (SPIFFE Workload API, 5.3).
async fn spiffe(endpoint: &str) -> Result<ClientCertificate, Error> {
    let failed =
        |problem: String| Error::WorkloadApi { endpoint: endpoint.to_owned(), source: Problem(problem) };
    let ask = async {
        let client = WorkloadApiClient::connect_to(endpoint).await?;
        client.fetch_x509_svid().await
    };
    let svid = match timeout(WORKLOAD_API_LIMIT, ask).await {
        Ok(svid) => svid.map_err(|error| failed(error.to_string()))?,
        Err(_) => {
            return Err(failed(format!(
                "no answer within {}",
                humantime::format_duration(WORKLOAD_API_LIMIT)
            )));
        }
    };
    let chain = svid.cert_chain().iter().map(|certificate| certificate.as_bytes().to_vec().into());
    let key = PrivatePkcs8KeyDer::from(svid.private_key().as_bytes().to_vec());
    Ok(ClientCertificate { chain: chain.collect(), key: key.into() })
}

/// Without what only the job may know.
fn shown(url: &Url) -> String {
    url.host_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_comes_before_what_is_offered() {
        let job = Job {
            token: Some("a.b.c".to_owned()),
            spiffe: Some("unix:///run/api.sock".to_owned()),
            audience: None,
            github: Some(("https://a.example/?b=c".to_owned(), "hush".to_owned())),
        };
        assert!(!format!("{job:?}").contains("hush"));
        let file = PathBuf::from("-");
        assert!(matches!(Source::told(Some(&file), &job), Some(Source::File(_))));
        assert!(matches!(Source::told(None, &job), Some(Source::Text(_))));
        assert!(Source::told(None, &Job::default()).is_none() && Source::offered(&Job::default()).is_none());
        let offered = Source::offered(&job).expect("offered");
        assert!(matches!(&offered, Source::GitHub { audience, .. } if audience == "portcullis"));
        let spiffe = Source::offered(&Job { github: None, ..job }).expect("offered");
        assert!(matches!(&spiffe, Source::Spiffe(endpoint) if endpoint == "unix:///run/api.sock"));
        assert!(spiffe.lasts() && offered.lasts() && !Source::File(file).lasts());
    }

    #[test]
    fn a_token_in_a_file_is_not_shown() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("token");
        std::fs::write(&path, "hush hush").expect("written");
        let error = read(&path, &mut std::io::empty()).expect_err("is refused");
        let mut text = Vec::new();
        crate::error::print(&mut text, &error).expect("to memory");
        assert!(!String::from_utf8_lossy(&text).contains("hush"), "{error}");
        let mut input = "a.b.c\n".as_bytes();
        assert_eq!(read(Path::new("-"), &mut input).expect("readable").as_str(), "a.b.c");
    }
}
