//! One bounded question to an issuer.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Response, StatusCode};
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt as _;

/// The largest answer. Key sets of large providers have 20 KiB.
const ANSWER_MAX_BYTES: usize = 256 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say it")]
pub enum FetchError {
    #[error("cannot prepare to ask issuers of tokens")]
    Prepare(#[source] reqwest::Error),
    #[error("cannot get `{address}`")]
    Get { address: String, source: reqwest::Error },
    #[error("`{address}` answered {status}")]
    Refused { address: String, status: StatusCode },
    #[error("the answer of `{address}` is larger than {ANSWER_MAX_BYTES} bytes")]
    TooLarge { address: String },
    #[error("the answer of `{address}` is not understood")]
    Malformed { address: String, source: serde_json::Error },
    #[error("cannot read the keys in `{}`", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("`{}` is no set of keys", path.display())]
    MalformedFile { path: PathBuf, source: serde_json::Error },
    #[error("the issuer calls itself `{found}`, not `{expected}`")]
    OtherIssuer { found: String, expected: String },
}

/// Asks over https only, follows nobody elsewhere, and waits for so long.
#[derive(Clone, Debug)]
pub(super) struct Fetcher(Client);

impl Fetcher {
    /// `authority`: PEM of the only one whose certificates are taken; None: the system's.
    pub(super) fn new(authority: Option<&[u8]>, limit: Duration) -> Result<Self, FetchError> {
        let mut builder = Client::builder().https_only(true).redirect(Policy::none()).timeout(limit);
        if let Some(pem) = authority {
            let certificates = Certificate::from_pem_bundle(pem).map_err(FetchError::Prepare)?;
            builder = builder.tls_certs_only(certificates);
        }
        builder.build().map(Self).map_err(FetchError::Prepare)
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, address: &str) -> Result<T, FetchError> {
        let failed = |source| FetchError::Get { address: address.to_owned(), source };
        let response = self.0.get(address).send().await.map_err(failed)?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Refused { address: address.to_owned(), status: response.status() });
        }
        let body = whole(address, response).await?;
        serde_json::from_slice(&body)
            .map_err(|source| FetchError::Malformed { address: address.to_owned(), source })
    }

    /// Sends a form, by a client that is known by `basic` (name and password), if so; whatever the answer's status is.
    pub(super) async fn post(
        &self,
        address: &str,
        form: &[(&str, &str)],
        basic: Option<(String, String)>,
    ) -> Result<(StatusCode, Vec<u8>), FetchError> {
        let mut request = self.0.post(address).form(form);
        if let Some((name, password)) = basic {
            request = request.basic_auth(name, Some(password));
        }
        let failed = |source| FetchError::Get { address: address.to_owned(), source };
        let response = request.send().await.map_err(failed)?;
        Ok((response.status(), whole(address, response).await?))
    }
}

async fn whole(address: &str, mut response: Response) -> Result<Vec<u8>, FetchError> {
    let failed = |source| FetchError::Get { address: address.to_owned(), source };
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > ANSWER_MAX_BYTES {
            return Err(FetchError::TooLarge { address: address.to_owned() });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The same from a file that an operator keeps up to date.
pub(super) async fn read<T: DeserializeOwned>(path: &Path) -> Result<T, FetchError> {
    let failed = |source| FetchError::File { path: path.to_owned(), source };
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let mut text = Vec::new();
    // What is cut short is malformed.
    file.take(ANSWER_MAX_BYTES as u64).read_to_end(&mut text).await.map_err(failed)?;
    serde_json::from_slice(&text)
        .map_err(|source| FetchError::MalformedFile { path: path.to_owned(), source })
}
