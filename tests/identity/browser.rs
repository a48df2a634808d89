//! A browser, as far as signing in needs one: it keeps cookies, follows redirects and fills in forms.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, RequestBuilder};
use url::Url;

/// More steps than signing in takes.
const STEPS_MAX: usize = 20;

/// Somebody before a browser.
pub(crate) struct Browser {
    client: Client,
    account: String,
    cookies: BTreeMap<String, String>,
}

/// A page: where it is, and what it says.
pub(crate) struct Page {
    pub(crate) address: Url,
    pub(crate) text: String,
}

impl Browser {
    /// `account`: who sits there; the provider is told at once.
    pub(crate) fn new(account: &str, authority: &[u8]) -> Result<Self> {
        let client = Client::builder()
            .redirect(Policy::none())
            .tls_certs_only(Certificate::from_pem_bundle(authority)?)
            .build()?;
        Ok(Self { client, account: account.to_owned(), cookies: BTreeMap::new() })
    }

    /// Opens an address, and whatever it leads to.
    pub(crate) async fn open(&mut self, address: &str) -> Result<Page> {
        let address = Url::parse(address)?;
        self.follow(self.client.get(address.clone()), address).await
    }

    /// Sends the form of a page, with one more field.
    pub(crate) async fn submit(&mut self, page: &Page, more: Option<(&str, &str)>) -> Result<Page> {
        let action = attribute(&page.text, "action=\"").context("the page has no form")?;
        let address = page.address.join(&action)?;
        let mut fields = inputs(&page.text);
        fields.extend(more.map(|(name, value)| (name.to_owned(), value.to_owned())));
        self.follow(self.client.post(address.clone()).form(&fields), address).await
    }

    async fn follow(&mut self, mut request: RequestBuilder, mut address: Url) -> Result<Page> {
        for _ in 0..STEPS_MAX {
            let cookies: Vec<String> =
                self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            // What is for the provider is not for our own listener.
            if address.scheme() == "https" {
                request = request.header("x-account", &self.account).header(COOKIE, cookies.join("; "));
            }
            let response = request.send().await?;
            for cookie in response.headers().get_all(SET_COOKIE) {
                let pair = cookie.to_str()?.split(';').next().unwrap_or_default();
                let (name, value) = pair.split_once('=').context("a cookie has a name")?;
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
            if !response.status().is_redirection() {
                let status = response.status();
                let text = response.text().await?;
                if status.is_server_error() {
                    bail!("{address} answered {status}: {text}");
                }
                return Ok(Page { address, text });
            }
            let location = response.headers().get(LOCATION).context("a redirect leads somewhere")?;
            address = address.join(location.to_str()?)?;
            request = self.client.get(address.clone());
        }
        bail!("more than {STEPS_MAX} redirects")
    }
}

/// The value behind the first such text.
fn attribute(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(name)?;
    Some(rest.split('"').next()?.replace("&amp;", "&"))
}

/// The fields of the forms of a page.
fn inputs(page: &str) -> Vec<(String, String)> {
    let field = |input: &str| {
        let input = input.split('>').next()?;
        Some((attribute(input, "name=\"")?, attribute(input, "value=\"").unwrap_or_default()))
    };
    page.split("<input").skip(1).filter_map(field).collect()
}
