//! One bounded POST.
//!
//! Owns: which answers count, what an error may say. Must not know: what is posted.
//!
//! Invariants: over https, or to this machine; nobody is followed elsewhere; of an answer no more is read than was asked for; no error
//! names an address, which may be a secret.

use reqwest::header::{CONTENT_TYPE, USER_AGENT};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Response, StatusCode};
use url::Url;

use crate::config::Endpoint;

const AGENT: &str = concat!("portcullis/", env!("CARGO_PKG_VERSION"));

/// Why nothing can be sent from here at all.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// By HTTP.
    #[error("cannot prepare to post notifications")]
    Http(#[source] reqwest::Error),
    /// By SMTP.
    #[error("cannot prepare to send mail")]
    Mail(#[source] lettre::transport::smtp::Error),
}

/// Why a POST was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PostError {
    #[error("cannot post")]
    Post(#[source] reqwest::Error),
    #[error("it answered {0}")]
    Refused(StatusCode),
    #[error("its answer is larger than {0} bytes")]
    TooLarge(usize),
}

/// Posts to one address.
#[derive(Clone)]
pub(crate) struct Poster {
    client: Client,
    url: Url,
}

impl std::fmt::Debug for Poster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Poster").field("host", &self.url.host_str()).finish_non_exhaustive()
    }
}

impl Poster {
    pub(crate) fn new(endpoint: Endpoint) -> Result<Self, PrepareError> {
        let Endpoint { url, authority } = endpoint;
        let mut builder = Client::builder().redirect(Policy::none());
        if url.scheme() == "https" {
            builder = builder.https_only(true);
        } else {
            // It is this machine: what is not encrypted goes by no proxy.
            builder = builder.no_proxy();
        }
        if let Some(pem) = authority {
            let certificates = Certificate::from_pem_bundle(&pem).map_err(PrepareError::Http)?;
            builder = builder.tls_certs_only(certificates);
        }
        Ok(Self { client: builder.build().map_err(PrepareError::Http)?, url })
    }

    /// Posts JSON. Only success is no error; the body of the answer has not been read.
    pub(crate) async fn post(
        &self,
        body: Vec<u8>,
        headers: &[(&'static str, String)],
    ) -> Result<Response, PostError> {
        let mut request = self
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, AGENT)
            .body(body);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let response = request.send().await.map_err(|error| PostError::Post(error.without_url()))?;
        match response.status() {
            status if status.is_success() => Ok(response),
            status => Err(PostError::Refused(status)),
        }
    }
}
