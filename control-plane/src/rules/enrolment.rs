//! Which of a host's certificates count.
//!
//! Owns: the life of a certificate, from its issue to its end. Must not know: keys, connections, storage.
//!
//! Renewal takes two steps, so that neither side is ever left with one that the other does not believe: a new certificate is
//! *pending* beside the *current* one, and the first time that it is presented it takes that one's place. What was replaced
//! is *superseded*, and nobody but a copy presents it again: its holder had its successor in use before.

use proto::types::{HostName, Timestamp};

use super::Refusal;

/// Where a certificate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Issued and not presented yet.
    Pending,
    /// The host's own.
    Current,
    /// Another one of the host was presented after it.
    Superseded,
    /// An administrator ended it, or another one was issued before it was ever presented.
    Revoked,
}

impl Standing {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Current, Self::Superseded, Self::Revoked];

    /// As the database keeps it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Current => "current",
            Self::Superseded => "superseded",
            Self::Revoked => "revoked",
        }
    }
}

/// What follows from a certificate that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presented {
    /// Nothing.
    Known,
    /// It becomes the current one, and the one before is superseded.
    Confirmed,
}

/// A certificate of `host` is presented, of which the record says `standing` (None: it does not know it), and which counts until
/// `not_after`.
pub fn present(
    host: &HostName,
    standing: Option<Standing>,
    not_after: Timestamp,
    now: Timestamp,
) -> Result<Presented, Refusal> {
    let host = || host.clone();
    match standing {
        None => Err(Refusal::UnknownCertificate(host())),
        Some(Standing::Revoked) => Err(Refusal::RevokedCertificate(host())),
        Some(Standing::Superseded) => Err(Refusal::SupersededCertificate(host())),
        Some(Standing::Pending | Standing::Current) if now > not_after => {
            Err(Refusal::ExpiredCertificate(host()))
        }
        Some(Standing::Pending) => Ok(Presented::Confirmed),
        Some(Standing::Current) => Ok(Presented::Known),
    }
}

/// A join token that is for `meant`, and counts until `expires`, is shown by somebody who says to be `asking`.
pub fn join(asking: &HostName, meant: &HostName, expires: Timestamp, now: Timestamp) -> Result<(), Refusal> {
    if asking != meant {
        return Err(Refusal::OtherHost { asking: asking.clone() });
    }
    match now > expires {
        true => Err(Refusal::JoinTokenOver),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_unix_ms(1_795_000_000_000 + ms).expect("in range")
    }

    #[test]
    fn which_certificates_count() {
        let host = "db-7".parse().expect("valid");
        let mut table = Vec::new();
        for standing in [None].into_iter().chain(Standing::ALL.map(Some)) {
            for (when, now) in [("in time", at(10)), ("too late", at(11))] {
                let said = match present(&host, standing, at(10), now) {
                    Ok(presented) => format!("{presented:?}").to_lowercase(),
                    Err(refusal) => format!("refused: {refusal}"),
                };
                table.push(format!("{:10} {when}: {said}", standing.map_or("unknown", Standing::as_str)));
            }
        }
        insta::assert_snapshot!(table.join("\n"));
    }

    #[test]
    fn a_join_token_is_for_one_host_and_minutes() {
        let (db_7, db_8) = ("db-7".parse().expect("valid"), "db-8".parse().expect("valid"));
        assert_eq!(join(&db_7, &db_7, at(10), at(10)), Ok(()));
        assert_eq!(join(&db_7, &db_7, at(10), at(11)), Err(Refusal::JoinTokenOver));
        assert_eq!(join(&db_8, &db_7, at(10), at(0)), Err(Refusal::OtherHost { asking: db_8 }));
    }
}
