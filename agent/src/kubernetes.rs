//! Which pods run on this node, asked of the API server and followed as they come and go.
//!
//! Owns: the one connection to the API server; back-off and limits. Must not know: cgroups, subjects.
//!
//! The protocol is list and watch: a list of this node's pods says as of which version it is, and the watch goes on from there,
//! a line of JSON for each change. Whatever goes wrong, a new list sets it right. What the API server sends is bounded: so many
//! bytes a page and a line, so much time for each.

mod remembered;
pub mod wire;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::RngExt;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue};
use reqwest::{Certificate, Client, Response, StatusCode, Url, redirect};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::rules::pods::{Pod, Pods, PodsChange};
pub use remembered::PodsFile;
use wire::{Line, Page};

/// How the API server is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where it is: `https`, nothing else.
    pub api_server: Url,
    /// File with the token of the agent's service account. Kubernetes replaces it every hour or so.
    pub token_file: PathBuf,
    /// File with the certificates by which the API server is known, PEM.
    pub ca_file: PathBuf,
    /// This node, as Kubernetes names it.
    pub node: String,
}

/// What is told of pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodsNews {
    /// Something is another than before.
    Changed(PodsChange),
    /// Nobody can tell what is now, and why. What was told before is as true as it was.
    Unreachable(String),
}

/// Pods of one page. Each has 10 to 20 KB as a rule.
const PAGE_PODS: usize = 64;
/// A page is not longer, or is not taken.
const PAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// A change is not longer: the API server's own limit for an object is 3 MiB.
const LINE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// A token or a bundle of certificates is not longer.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// For a connection, and for a page.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a watch lasts, at least and at most, before another is begun: not on all nodes at once.
const WATCH_SECONDS: std::ops::Range<u64> = 240..300;
/// A watch that its server should have ended by now is dead.
const WATCH_TIMEOUT: Duration = Duration::from_secs(WATCH_SECONDS.end + 15);
/// How often the other side is asked whether it is alive, and how long it may take to say so.
const ALIVE_EVERY: Duration = Duration::from_secs(10);
/// Between two tries: this at first, doubled up to that, half of it by chance. What went well for longer than that begins
/// anew.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// From the beginning of one watch to that of the next: a server that ends each at once is not asked all the time.
const WATCH_PAUSE: Duration = Duration::from_secs(1);
/// News that wait to be taken.
const NEWS_MAX: usize = 64;

/// Why the API server could not be asked, or not to the end.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("cannot read {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot use {path}, which is no {what}", path = path.display())]
    File { path: PathBuf, what: &'static str },
    #[error("cannot ask {url}: {why}")]
    Request { url: String, why: String },
    #[error("{url} answers {status}{hint}")]
    Status { url: String, status: StatusCode, hint: &'static str },
    #[error("{url} sends {what}")]
    Answer { url: String, what: String },
    /// What the watch goes on from is not kept any more.
    #[error("{url} has forgotten where the watch was")]
    Expired { url: String },
}

/// The pods of a node, as they are told of. Ends with its drop.
pub struct Following {
    news: mpsc::Receiver<PodsNews>,
    task: JoinHandle<()>,
}

impl Following {
    /// The next news; None: there will be none.
    pub async fn next(&mut self) -> Option<PodsNews> {
        self.news.recv().await
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Begins to follow.
pub fn follow(settings: Settings) -> Following {
    let (sender, news) = mpsc::channel(NEWS_MAX);
    Following { news, task: tokio::spawn(keep(settings, sender)) }
}

async fn keep(settings: Settings, news: mpsc::Sender<PodsNews>) {
    let mut pause = PAUSE_MIN;
    loop {
        let began = Instant::now();
        let outcome = follow_once(&settings, &news).await;
        if began.elapsed() > PAUSE_MAX {
            pause = PAUSE_MIN;
        }
        match outcome {
            // Nobody listens any more.
            Ok(()) => return,
            // A new list is all it takes.
            Err(AskError::Expired { .. }) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot follow this node's pods; trying again");
                if news.send(PodsNews::Unreachable(error.to_string())).await.is_err() {
                    return;
                }
            }
        }
        let part = rand::rng().random_range(0.5..1.0);
        sleep(pause.mul_f64(part)).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Lists once, then watches until something goes wrong.
async fn follow_once(settings: &Settings, news: &mpsc::Sender<PodsNews>) -> Result<(), AskError> {
    let asking = Asking::new(settings)?;
    let (pods, mut version) = asking.list().await?;
    if news.send(PodsNews::Changed(PodsChange::Listed(pods))).await.is_err() {
        return Ok(());
    }
    loop {
        let next = Instant::now() + WATCH_PAUSE;
        let mut watch = asking.watch(&version).await?;
        while let Some(line) = watch.next().await? {
            match asking.understand(&line)? {
                Line::Change(change, at) => {
                    version = at;
                    if let Some(change) = change
                        && news.send(PodsNews::Changed(change)).await.is_err()
                    {
                        return Ok(());
                    }
                }
                Line::Expired => return Err(AskError::Expired { url: asking.url() }),
                Line::Refused(why) => return Err(asking.strange(format!("an error: {why}"))),
            }
        }
        sleep_until(next).await;
    }
}

/// One client, with the certificates as they are now.
struct Asking<'a> {
    settings: &'a Settings,
    client: Client,
}

impl<'a> Asking<'a> {
    fn new(settings: &'a Settings) -> Result<Self, AskError> {
        let path = &settings.ca_file;
        let refuse = || AskError::File { path: path.clone(), what: "bundle of certificates in PEM" };
        let roots = Certificate::from_pem_bundle(&read(path)?).map_err(|_| refuse())?;
        if roots.is_empty() {
            return Err(refuse());
        }
        // No proxy, no redirection, no other authority: the token is for this server only.
        let client = Client::builder()
            .tls_certs_only(roots)
            .https_only(true)
            .no_proxy()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(WATCH_TIMEOUT)
            .http2_keep_alive_interval(ALIVE_EVERY)
            .http2_keep_alive_timeout(ALIVE_EVERY)
            .http2_keep_alive_while_idle(true)
            .tcp_keepalive(ALIVE_EVERY)
            .build()
            .map_err(|_| refuse())?;
        Ok(Self { settings, client })
    }

    /// All pods of the node, and as of which version.
    async fn list(&self) -> Result<(Vec<Pod>, String), AskError> {
        let limit = PAGE_PODS.to_string();
        let mut pods = Vec::new();
        let mut token = String::new();
        // More than are remembered need not be read.
        loop {
            let mut query = vec![("limit", limit.as_str())];
            query.extend((!token.is_empty()).then_some(("continue", token.as_str())));
            let page = async { self.body(self.get(&query).await?).await };
            let body =
                timeout(PAGE_TIMEOUT, page).await.map_err(|_| self.unasked("no page came in 30 s"))??;
            let page = Page::parse(&body, &self.settings.node).map_err(|error| self.strange(error))?;
            pods.extend(page.pods);
            if page.continues.is_empty() || pods.len() > Pods::MAX {
                return Ok((pods, page.version));
            }
            token = page.continues;
        }
    }

    /// Changes since a version.
    async fn watch(&self, version: &str) -> Result<Watch, AskError> {
        let seconds = rand::rng().random_range(WATCH_SECONDS).to_string();
        let query = [
            ("watch", "1"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", &seconds),
            ("resourceVersion", version),
        ];
        let response = timeout(PAGE_TIMEOUT, self.get(&query)).await;
        let response = response.map_err(|_| self.unasked("no watch began in 30 s"))??;
        Ok(Watch { url: self.url(), response, buffer: Vec::new(), searched: 0 })
    }

    async fn get(&self, query: &[(&str, &str)]) -> Result<Response, AskError> {
        let mut url = self.settings.api_server.clone();
        url.set_path("/api/v1/pods");
        url.query_pairs_mut()
            .append_pair("fieldSelector", &format!("spec.nodeName={}", self.settings.node))
            .extend_pairs(query);
        let request = self.client.get(url).header(ACCEPT, "application/json");
        let response = request.header(AUTHORIZATION, self.token()?).send().await;
        let response = response.map_err(|error| self.unasked(chain(&error)))?;
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::GONE => Err(AskError::Expired { url: self.url() }),
            status => Err(AskError::Status { url: self.url(), status, hint: hint(status) }),
        }
    }

    /// The token as it is now.
    fn token(&self) -> Result<HeaderValue, AskError> {
        let path = &self.settings.token_file;
        let text = String::from_utf8(read(path)?).unwrap_or_default();
        let header = (!text.trim().is_empty()).then(|| format!("Bearer {}", text.trim()));
        let header = header.and_then(|header| HeaderValue::try_from(header).ok());
        let mut header = header.ok_or_else(|| AskError::File { path: path.clone(), what: "token" })?;
        header.set_sensitive(true);
        Ok(header)
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, AskError> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unasked(chain(&error)))? {
            if body.len() + chunk.len() > PAGE_BYTES_MAX {
                return Err(self.strange(format!("a page of more than {PAGE_BYTES_MAX} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn understand(&self, line: &[u8]) -> Result<Line, AskError> {
        Line::parse(line, &self.settings.node).map_err(|error| self.strange(error))
    }

    fn url(&self) -> String {
        self.settings.api_server.to_string()
    }

    fn unasked(&self, why: impl Into<String>) -> AskError {
        AskError::Request { url: self.url(), why: why.into() }
    }

    fn strange(&self, what: impl Into<String>) -> AskError {
        AskError::Answer { url: self.url(), what: what.into() }
    }
}

/// A watch under way.
struct Watch {
    url: String,
    response: Response,
    buffer: Vec<u8>,
    /// So much of the buffer has no line's end.
    searched: usize,
}

impl Watch {
    /// The next line; None: the server has ended the watch, as it should now and then.
    async fn next(&mut self) -> Result<Option<Vec<u8>>, AskError> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(self.searched + at + 1);
                self.searched = 0;
                return Ok(Some(std::mem::replace(&mut self.buffer, rest)));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > LINE_BYTES_MAX {
                let what = format!("a change of more than {LINE_BYTES_MAX} bytes");
                return Err(AskError::Answer { url: self.url.clone(), what });
            }
            match self.response.chunk().await {
                Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk),
                Ok(None) if self.buffer.is_empty() => return Ok(None),
                Ok(None) => {
                    let what = "half a change".to_owned();
                    return Err(AskError::Answer { url: self.url.clone(), what });
                }
                Err(error) => {
                    return Err(AskError::Request { url: self.url.clone(), why: chain(&error) });
                }
            }
        }
    }
}

fn hint(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => ": look at `kubernetes.token_file`",
        StatusCode::FORBIDDEN => ": give the agent's service account `list` and `watch` of pods",
        _ => "",
    }
}

/// What happened and why, without the address, which the caller names.
fn chain(error: &reqwest::Error) -> String {
    let mut texts = Vec::new();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        texts.push(cause.to_string());
        source = cause.source();
    }
    // Without a cause it says itself what it is.
    texts.pop().unwrap_or_else(|| error.to_string())
}

fn read(path: &Path) -> Result<Vec<u8>, AskError> {
    let mut bytes = Vec::new();
    let file = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes));
    file.map_err(|source| AskError::Read { path: path.to_owned(), source })?;
    Ok(bytes)
}
