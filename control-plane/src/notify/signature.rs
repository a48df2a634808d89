//! Signatures by the Standard Webhooks specification, 1.0.0: over id, moment of the try, and body.
//!
//! Owns: what is signed, and how the headers are written. Must not know: what a body says.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use proto::types::Timestamp;
use sha2::Sha256;

use crate::config::SigningSecrets;

/// The headers of one try: the id, which never changes; when it is tried, by the wall clock, which others compare with theirs; a signature
/// for each secret.
pub(crate) fn headers(
    secrets: &SigningSecrets,
    id: &str,
    now: Timestamp,
    body: &[u8],
) -> [(&'static str, String); 3] {
    let seconds = (now.unix_ms() / 1000).to_string();
    let signatures: Vec<String> = secrets.0.iter().map(|key| signature(key, id, &seconds, body)).collect();
    [
        ("webhook-id", id.to_owned()),
        ("webhook-timestamp", seconds),
        ("webhook-signature", signatures.join(" ")),
    ]
}

fn signature(key: &[u8], id: &str, seconds: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in [id.as_bytes(), b".", seconds.as_bytes(), b".", body] {
        mac.update(part);
    }
    format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the reference implementations.
    #[test]
    fn it_is_the_signature_of_others() {
        let secrets = SigningSecrets::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a secret");
        let now = Timestamp::from_unix_ms(1_614_265_330_999).expect("in range");
        let [id, time, signature] =
            headers(&secrets, "msg_p5jXN8AQM9LWM0D4loKWxJek", now, br#"{"test": 2432232314}"#);
        assert_eq!(id, ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek".to_owned()));
        assert_eq!(time, ("webhook-timestamp", "1614265330".to_owned()));
        assert_eq!(signature.1, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn each_secret_signs_while_one_is_changed() {
        let text = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\nwhsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n";
        let secrets = SigningSecrets::parse(text).expect("secrets");
        let now = Timestamp::from_unix_ms(0).expect("in range");
        let [_, _, (_, signatures)] = headers(&secrets, "a", now, b"{}");
        let signatures: Vec<&str> = signatures.split(' ').collect();
        assert_eq!(signatures.len(), 2);
        assert!(signatures[0] != signatures[1] && signatures.iter().all(|one| one.starts_with("v1,")));
        assert!(!format!("{secrets:?}").contains("MfKQ"));
    }
}
