//! The two cookies: of a session, and of a sign-in that has begun.
//!
//! Both are `__Host-`: browsers take them from this host over https only, and send them to no other. No script reads them, and no
//! page of another site has them sent, but by leading the person here.

use axum::http::header::COOKIE;
use axum::http::{HeaderMap, HeaderValue};

/// The secret of a session. It goes with the browser; when it ends is decided here.
pub(super) const SESSION: &str = "__Host-portcullis";

/// What a browser has to remember while somebody signs in.
pub(super) const ATTEMPT: &str = "__Host-portcullis-sign-in";

/// The longest value that is looked at.
const VALUE_MAX_BYTES: usize = 2048;

/// The value of a cookie; None: there is none, or it is not clear which.
pub(super) fn value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let pairs = headers.get_all(COOKIE).iter().filter_map(|header| header.to_str().ok());
    let mut values = pairs.flat_map(|header| header.split(';')).filter_map(|pair| {
        let (found, value) = pair.trim().split_once('=')?;
        (found == name).then_some(value)
    });
    let value = values.next()?;
    (values.next().is_none() && value.len() <= VALUE_MAX_BYTES).then_some(value)
}

/// Gives a cookie; without `seconds` it goes when the browser closes.
pub(super) fn given(name: &str, value: &str, seconds: Option<u64>) -> HeaderValue {
    let age = seconds.map(|seconds| format!("; Max-Age={seconds}")).unwrap_or_default();
    header(format!("{name}={value}; Path=/; Secure; HttpOnly; SameSite=Lax{age}"))
}

/// Takes a cookie away.
pub(super) fn taken(name: &str) -> HeaderValue {
    given(name, "", Some(0))
}

fn header(text: String) -> HeaderValue {
    HeaderValue::from_str(&text).expect("names and values of ours are ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(headers: &[&str], expected: Option<&str>) {
        let mut all = HeaderMap::new();
        for header in headers {
            all.append(COOKIE, HeaderValue::from_bytes(header.as_bytes()).expect("a header"));
        }
        assert_eq!(value(&all, SESSION), expected, "{headers:?}");
    }

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        check(&["__Host-portcullis=pcb_1"], Some("pcb_1"));
        check(&["a=b; __Host-portcullis=pcb_1;c=d"], Some("pcb_1"));
        check(&["a=b", "__Host-portcullis=pcb_1"], Some("pcb_1"));
        check(&["__Host-portcullis-sign-in=x; portcullis=y; x__Host-portcullis=z"], None);
        check(&["__host-portcullis=x"], None);
        check(&["__Host-portcullis"], None);
        check(&[""], None);
        check(&["__Host-portcullis=\u{e4}"], None);
    }

    #[test]
    fn two_of_one_name_are_none() {
        check(&["__Host-portcullis=a; __Host-portcullis=b"], None);
        check(&["__Host-portcullis=a", "__Host-portcullis=a"], None);
        check(&[&format!("__Host-portcullis={}", "a".repeat(2049))], None);
    }

    #[test]
    fn what_browsers_are_told() {
        assert_eq!(
            given(SESSION, "pcb_1", None),
            "__Host-portcullis=pcb_1; Path=/; Secure; HttpOnly; SameSite=Lax"
        );
        let gone = "__Host-portcullis-sign-in=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0";
        assert_eq!(taken(ATTEMPT), gone);
    }
}
