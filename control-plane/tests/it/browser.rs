//! A browser as the console sees it, which does only what it is told: it keeps cookies and follows nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use reqwest::header::{COOKIE, HeaderMap, LOCATION, SET_COOKIE};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, StatusCode};
use url::Url;

use super::world::World;

/// How the console is known in these tests.
pub(crate) const ORIGIN: &str = "https://console.test";

/// Somebody's browser.
pub(crate) struct Browser {
    client: Client,
    pub(crate) cookies: BTreeMap<String, String>,
}

/// What came.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    /// Where it leads.
    #[track_caller]
    pub(crate) fn location(&self) -> String {
        let location = self.headers.get(LOCATION).unwrap_or_else(|| panic!("{}: {}", self.status, self.text));
        location.to_str().expect("ASCII").to_owned()
    }

    /// The same, as a URL of somebody else's.
    #[track_caller]
    pub(crate) fn address(&self) -> Url {
        Url::parse(&self.location()).expect("an absolute URL")
    }
}

/// The value of a parameter of an address.
pub(crate) fn parameter(address: &Url, name: &str) -> String {
    let found = address.query_pairs().find(|(key, _)| key == name);
    found.map(|(_, value)| value.into_owned()).unwrap_or_default()
}

impl Browser {
    pub(crate) fn new(world: &World) -> Self {
        Self::at(world, world.console())
    }

    /// One that finds the console there.
    pub(crate) fn at(world: &World, address: SocketAddr) -> Self {
        let client = Client::builder()
            .redirect(Policy::none())
            .tls_certs_only([Certificate::from_der(&world.authority).expect("a certificate")])
            .resolve("console.test", address)
            .build()
            .expect("a client");
        Self { client, cookies: BTreeMap::new() }
    }

    pub(crate) async fn get(&mut self, path: &str) -> Answer {
        self.send("GET", path, &[]).await
    }

    /// As a page of the console's own does.
    pub(crate) async fn post(&mut self, path: &str) -> Answer {
        self.send("POST", path, &[("origin", ORIGIN), ("sec-fetch-site", "same-origin")]).await
    }

    pub(crate) async fn send(&mut self, verb: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let verb = verb.parse().expect("a verb");
        let port = self.client.request(verb, format!("{ORIGIN}{path}"));
        let mut request = port;
        if !self.cookies.is_empty() {
            let pairs: Vec<_> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            request = request.header(COOKIE, pairs.join("; "));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.expect("an answer");
        let (status, headers) = (response.status(), response.headers().clone());
        for cookie in headers.get_all(SET_COOKIE) {
            self.take(cookie.to_str().expect("ASCII"));
        }
        Answer { status, headers, text: response.text().await.expect("text") }
    }

    /// Takes a cookie if it is as `__Host-` has to be.
    fn take(&mut self, cookie: &str) {
        let mut parts = cookie.split("; ");
        let (name, value) = parts.next().and_then(|pair| pair.split_once('=')).expect("a cookie");
        let attributes: Vec<&str> = parts.collect();
        assert!(name.starts_with("__Host-"), "{cookie}");
        for needed in ["Path=/", "Secure", "HttpOnly", "SameSite=Lax"] {
            assert!(attributes.contains(&needed), "{cookie}");
        }
        assert!(!attributes.iter().any(|attribute| attribute.starts_with("Domain")), "{cookie}");
        match attributes.contains(&"Max-Age=0") {
            true => drop(self.cookies.remove(name)),
            false => drop(self.cookies.insert(name.to_owned(), value.to_owned())),
        }
    }
}
