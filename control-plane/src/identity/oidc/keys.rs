//! An issuer's keys, and what each may sign with.
//!
//! Owns: the header of a token, the choice of the key, the signature. Must not know: where keys come from, what claims mean.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::TokenError;

/// The most keys of one provider that are looked at. Entra, the largest, has a dozen.
const KEYS_MAX: usize = 100;

/// A key set as it is published. Keys that are not understood are no reason to refuse the others.
#[derive(Debug, Deserialize)]
pub(super) struct Published {
    keys: Vec<Value>,
}

/// A provider's keys, as far as they can verify a signature.
#[derive(Debug)]
pub(super) struct Keys(Vec<Jwk>);

/// One of them.
pub(super) type Key = Jwk;

/// The part of a token's header that counts.
#[derive(Deserialize)]
pub(super) struct Header {
    pub(super) alg: String,
    pub(super) kid: Option<String>,
    pub(super) crit: Option<Value>,
    typ: Option<String>,
}

impl Header {
    /// Access tokens and logout tokens of the same issuer say what they are (`at+jwt`, `logout+jwt`); ID tokens say `JWT`, or
    /// nothing.
    pub(super) fn may_be_id_token(&self) -> bool {
        self.typ.as_deref().is_none_or(|kind| kind.eq_ignore_ascii_case("JWT"))
    }
}

impl From<Published> for Keys {
    fn from(published: Published) -> Self {
        let understood = |key| serde_json::from_value::<Jwk>(key).ok();
        Self(
            published
                .keys
                .into_iter()
                .take(KEYS_MAX)
                .filter_map(understood)
                .filter(is_for_signatures)
                .collect(),
        )
    }
}

impl Keys {
    /// The key with this id, if it may sign so. Without an id: the only one that may.
    pub(super) fn find(&self, algorithm: Algorithm, id: Option<&str>) -> Option<Key> {
        let mut fit = self.0.iter().filter(|key| {
            (id.is_none() || key.common.key_id.as_deref() == id) && may_sign_with(key, algorithm)
        });
        let found = fit.next()?;
        (id.is_some() || fit.next().is_none()).then(|| found.clone())
    }
}

fn is_for_signatures(key: &Jwk) -> bool {
    matches!(key.common.public_key_use, None | Some(PublicKeyUse::Signature))
}

/// A key has one type, and one type fits an algorithm; what the key says of itself narrows it further. A secret among public
/// keys fits none.
fn may_sign_with(key: &Jwk, algorithm: Algorithm) -> bool {
    let says_so = key.common.key_algorithm.is_none_or(|named| named.to_string() == name(algorithm));
    let fits = match &key.algorithm {
        AlgorithmParameters::RSA(_) => matches!(
            algorithm,
            Algorithm::RS256
                | Algorithm::RS384
                | Algorithm::RS512
                | Algorithm::PS256
                | Algorithm::PS384
                | Algorithm::PS512
        ),
        AlgorithmParameters::EllipticCurve(key) => matches!(
            (&key.curve, algorithm),
            (EllipticCurve::P256, Algorithm::ES256) | (EllipticCurve::P384, Algorithm::ES384)
        ),
        AlgorithmParameters::OctetKeyPair(key) => {
            (&key.curve, algorithm) == (&EllipticCurve::Ed25519, Algorithm::EdDSA)
        }
        _ => false,
    };
    says_so && fits
}

/// As tokens and key sets write it.
pub(super) fn name(algorithm: Algorithm) -> String {
    format!("{algorithm:?}")
}

/// A text from outside, for an error: cut, and without what could steer a terminal.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

/// What a token says of itself. Nothing of it is proven.
pub(super) fn header(token: &str) -> Result<Header, TokenError> {
    let parts: Vec<&str> = token.splitn(4, '.').collect();
    let [header, _, _] = parts[..] else { return Err(TokenError::Malformed("it has not three parts")) };
    let json = BASE64_URL_SAFE_NO_PAD.decode(header);
    let json = json.map_err(|_| TokenError::Malformed("its header is not base64url"))?;
    serde_json::from_slice(&json).map_err(|_| TokenError::Malformed("its header is not understood"))
}

/// The part of a token that its signature is over, which nobody else can change. The signature itself can be written in more
/// than one way (ECDSA: by the other of two numbers), so it says nothing about whether a token is another one.
pub(super) fn signed_part(token: &str) -> &str {
    token.rsplit_once('.').map_or(token, |(signed, _)| signed)
}

/// Whose a token says it is. Nothing of it is proven: it tells whose keys to try.
pub fn unproven_issuer(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Claims {
        iss: String,
    }

    let claims = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    serde_json::from_slice::<Claims>(&claims).ok().map(|claims| claims.iss)
}

/// The claims, if the signature is that of the key.
pub(super) fn verified(
    token: &str,
    algorithm: Algorithm,
    key: &Key,
) -> Result<Map<String, Value>, TokenError> {
    let key = DecodingKey::from_jwk(key).map_err(|_| TokenError::Malformed("its key is not understood"))?;
    let mut validation = Validation::new(algorithm);
    // `rules/claims` judges what the token says, by a time that it is given.
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    match jsonwebtoken::decode(token, &key, &validation) {
        Ok(decoded) => Ok(decoded.claims),
        Err(error) => Err(match error.kind() {
            ErrorKind::Json(_) | ErrorKind::Utf8(_) | ErrorKind::InvalidClaimFormat(_) => {
                TokenError::Malformed("its claims are not understood")
            }
            _ => TokenError::BadSignature,
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Which of these algorithms a key may sign with.
    #[track_caller]
    fn check(key: Value, expected: &[Algorithm]) {
        let keys = Keys::from(Published { keys: vec![key.clone()] });
        let all = [
            Algorithm::HS256,
            Algorithm::RS256,
            Algorithm::RS512,
            Algorithm::PS256,
            Algorithm::ES256,
            Algorithm::ES384,
            Algorithm::EdDSA,
        ];
        let fit: Vec<Algorithm> =
            all.into_iter().filter(|all| keys.find(*all, Some("k")).is_some()).collect();
        assert_eq!(fit, expected, "{key}");
    }

    #[test]
    fn a_key_signs_by_its_type_only() {
        use Algorithm::{ES256, ES384, EdDSA, PS256, RS256, RS512};
        check(json!({"kty": "RSA", "kid": "k", "n": "AQAB", "e": "AQAB"}), &[RS256, RS512, PS256]);
        check(json!({"kty": "RSA", "kid": "k", "n": "AQAB", "e": "AQAB", "alg": "RS256"}), &[RS256]);
        check(json!({"kty": "RSA", "kid": "k", "n": "AQAB", "e": "AQAB", "use": "enc"}), &[]);
        check(json!({"kty": "RSA", "kid": "other", "n": "AQAB", "e": "AQAB"}), &[]);
        check(json!({"kty": "EC", "kid": "k", "crv": "P-256", "x": "AA", "y": "AA"}), &[ES256]);
        check(json!({"kty": "EC", "kid": "k", "crv": "P-384", "x": "AA", "y": "AA"}), &[ES384]);
        check(json!({"kty": "OKP", "kid": "k", "crv": "Ed25519", "x": "AA"}), &[EdDSA]);
        check(json!({"kty": "oct", "kid": "k", "k": "c2VjcmV0"}), &[]);
        check(json!({"kty": "new", "kid": "k"}), &[]);
        check(json!("no key"), &[]);
    }

    #[test]
    fn without_an_id_there_must_be_one_key_only() {
        let rsa = |id: &str| json!({"kty": "RSA", "kid": id, "n": "AQAB", "e": "AQAB"});
        let curve = json!({"kty": "EC", "kid": "c", "crv": "P-256", "x": "AA", "y": "AA"});
        let one = Keys::from(Published { keys: vec![rsa("a"), curve.clone()] });
        assert!(one.find(Algorithm::RS256, None).is_some());
        let two = Keys::from(Published { keys: vec![rsa("a"), rsa("b"), curve] });
        assert!(two.find(Algorithm::RS256, None).is_none());
        assert!(two.find(Algorithm::RS256, Some("b")).is_some());
    }

    proptest::proptest! {
        #[test]
        fn no_token_and_no_key_set_panics(header in "[-A-Za-z0-9_=.]{0,40}", key in "[{}\\[\\]\":,a-zA-Z0-9-]{0,60}") {
            let _ = super::header(&header);
            let _ = unproven_issuer(&header);
            let _ = unproven_issuer(&format!("a.{}.c", BASE64_URL_SAFE_NO_PAD.encode(&key)));
            let _ = super::header(&format!("{}.b.c", BASE64_URL_SAFE_NO_PAD.encode(&key)));
            if let Ok(keys) = serde_json::from_str::<Published>(&format!("{{\"keys\":[{key}]}}")) {
                let _ = Keys::from(keys).find(Algorithm::RS256, None);
            }
        }
    }

    #[test]
    fn what_is_no_token_is_told() {
        for bad in ["", "a", "a.b", "a.b.c.d", "!.b.c", "e30.b.c", "bnVsbA.b.c", "\u{e4}.b.c"] {
            assert!(header(bad).is_err(), "{bad}");
        }
        let header = header("eyJhbGciOiJub25lIn0..").ok().map(|header| header.alg);
        assert_eq!(header.as_deref(), Some("none"));
    }
}
