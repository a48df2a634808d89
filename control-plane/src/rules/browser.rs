//! What a browser says of a request → whether it counts; where a person may be led afterwards.
//!
//! Owns: these two rules, against pages of others that have a browser ask here. Must not know: HTTP libraries, sessions.
//!
//! Invariant: of a change, what is not known to come from our own pages does not.

use super::claims::shown;

/// The longest path that somebody is led back to.
const PATH_MAX_BYTES: usize = 512;

/// What a browser says of where a request comes from. What it does not say is None.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Source<'a> {
    /// `Origin`: of the page; browsers send it with every POST.
    pub origin: Option<&'a str>,
    /// `Sec-Fetch-Site`: how the page is related to us.
    pub site: Option<&'a str>,
    /// `Sec-Fetch-Mode`: whether the browser goes there, or only fetches it for a page.
    pub mode: Option<&'a str>,
    /// `Sec-Fetch-Dest`: what the answer is for.
    pub destination: Option<&'a str>,
}

/// Why a request does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say it")]
pub enum Foreign {
    #[error("the request comes from a page of `{0}`")]
    Origin(String),
    #[error("the request does not say from which page it comes")]
    NoOrigin,
    #[error("the browser says that the request comes from another site (`{0}`)")]
    Site(String),
    #[error("a page of another site asks for this as a part of itself")]
    Embedded,
}

impl Source<'_> {
    /// Whether what only reads may be answered. Links from elsewhere are welcome; pages that would have it inside them are not.
    pub fn check_read(&self) -> Result<(), Foreign> {
        let is_from_elsewhere = matches!(self.site, Some(site) if site != "same-origin" && site != "none");
        let is_visit = self.mode == Some("navigate") && self.destination == Some("document");
        match is_from_elsewhere && !is_visit {
            true => Err(Foreign::Embedded),
            false => Ok(()),
        }
    }

    /// Whether a change may be made: only a page of `own`, such as `https://portcullis.example.com`, may ask for it.
    pub fn check_change(&self, own: &str) -> Result<(), Foreign> {
        match self.origin {
            None => return Err(Foreign::NoOrigin),
            Some(origin) if origin != own => return Err(Foreign::Origin(shown(origin))),
            Some(_) => {}
        }
        match self.site {
            None | Some("same-origin") => Ok(()),
            Some(site) => Err(Foreign::Site(shown(site))),
        }
    }
}

/// A path of our own that somebody can be led to, or the start page's: never another site, never back into a sign-in.
pub fn own_path(asked: &str) -> &str {
    const START: &str = "/";
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~?&=%+,:@".contains(&byte);
    let is_path = asked.starts_with('/') && !asked.starts_with("//");
    let leads_out = ["/sign-in", "/sign-out", "/signed-out"].iter().any(|way| asked.starts_with(way));
    match is_path && !leads_out && asked.len() <= PATH_MAX_BYTES && asked.bytes().all(is_fit) {
        true => asked,
        false => START,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "https://portcullis.example.com";

    #[test]
    fn changes_are_asked_for_by_our_own_pages() {
        let from = |origin, site| Source { origin, site, ..Source::default() }.check_change(OWN);
        assert_eq!(from(Some(OWN), Some("same-origin")), Ok(()));
        assert_eq!(from(Some(OWN), None), Ok(()), "a browser of before 2023");
        assert_eq!(from(None, None), Err(Foreign::NoOrigin));
        assert_eq!(from(None, Some("same-origin")), Err(Foreign::NoOrigin));
        for origin in [
            "null",
            "",
            "https://evil.example",
            "http://portcullis.example.com",
            "https://portcullis.example.com:8443",
            "https://portcullis.example.com.evil.example",
            "https://x.portcullis.example.com",
            "HTTPS://PORTCULLIS.EXAMPLE.COM",
        ] {
            assert_eq!(from(Some(origin), None), Err(Foreign::Origin(origin.to_owned())));
        }
        for site in ["cross-site", "same-site", "none", "new"] {
            assert_eq!(from(Some(OWN), Some(site)), Err(Foreign::Site(site.to_owned())));
        }
    }

    #[test]
    fn others_may_link_here_and_not_embed() {
        let from = |site, mode, destination| {
            Source { site: Some(site), mode: Some(mode), destination: Some(destination), origin: None }
                .check_read()
        };
        assert_eq!(from("cross-site", "navigate", "document"), Ok(()));
        assert_eq!(from("none", "navigate", "document"), Ok(()));
        assert_eq!(from("same-origin", "cors", "empty"), Ok(()));
        assert_eq!(Source::default().check_read(), Ok(()), "an old browser, or none");
        assert_eq!(from("cross-site", "no-cors", "image"), Err(Foreign::Embedded));
        assert_eq!(from("cross-site", "navigate", "iframe"), Err(Foreign::Embedded));
        assert_eq!(from("same-site", "cors", "empty"), Err(Foreign::Embedded));
    }

    #[test]
    fn nobody_is_led_elsewhere() {
        for path in ["/", "/requests/01940000-0000-7000-8000-000000000001", "/?a=b&c=%2F"] {
            assert_eq!(own_path(path), path);
        }
        for path in [
            "",
            "https://evil.example",
            "//evil.example",
            "/\\evil.example",
            "\\\\evil.example",
            "/\t/evil.example",
            "/a\r\nSet-Cookie: x=y",
            "/#x",
            "/\u{430}",
            "javascript:alert(1)",
            " /",
            "/sign-in/corp",
            "/sign-out",
            "/signed-out?from=corp",
        ] {
            assert_eq!(own_path(path), "/", "{path}");
        }
        assert_eq!(own_path(&format!("/{}", "a".repeat(512))), "/");
    }

    proptest::proptest! {
        #[test]
        fn wherever_it_leads_is_ours(asked in "[/\\\\.:@?#%a-z\\t\\r\\n\\u{0}\\u{ff0f} ]{0,12}|.{0,20}") {
            let base = url::Url::parse(OWN).expect("valid");
            let led = base.join(own_path(&asked)).expect("a path");
            proptest::prop_assert_eq!(led.origin(), base.origin());
        }
    }
}
