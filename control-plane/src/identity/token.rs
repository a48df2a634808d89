//! Tokens: 256 random bits, of which only the SHA-256 is kept. No slow hash is needed: nobody guesses 256 bits.

use std::fmt;

use sha2::{Digest, Sha256};

/// A secret with which a subject or an agent signs in. It is shown once, and its debug form does not show it.
pub struct Token(String);

/// What is kept of a token.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenHash([u8; 32]);

impl Token {
    /// A new one for a subject: `pct_…`.
    pub fn for_subject() -> Self {
        Self::random("pct_")
    }

    /// A new one for the session of somebody who signed in with a provider: `pcs_…`.
    pub fn for_session() -> Self {
        Self::random("pcs_")
    }

    /// A new one for the session of a browser, which keeps it as a cookie: `pcb_…`.
    pub fn for_browser() -> Self {
        Self::random("pcb_")
    }

    /// The prefix lets people, and scanners for leaked secrets, see what it is.
    fn random(prefix: &str) -> Self {
        let bytes: [u8; 32] = rand::random();
        let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
        Self(digits.fold(prefix.to_owned(), |token, digit| token + &digit))
    }

    /// What is kept of it.
    pub fn hash(&self) -> TokenHash {
        TokenHash::of(&self.0)
    }

    /// The secret itself, for the one time that it is shown.
    pub fn reveal(self) -> String {
        self.0
    }
}

impl TokenHash {
    /// Of a token as it came with a call, or of an ID token.
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_long_different_and_not_shown() {
        let (one, other) = (Token::for_subject(), Token::for_subject());
        assert_ne!(one.hash(), other.hash());
        assert_eq!(format!("{one:?}"), "Token(…)");
        assert_eq!(TokenHash::of(&one.0), one.hash());
        assert_eq!(one.reveal().len(), "pct_".len() + 64);
    }
}
