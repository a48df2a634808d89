//! Whose name is whose: a person's subject belongs to one account at one issuer, and an account to one subject.
//!
//! Owns: who is bound, who is refused. Must not know: how accounts are proven, what anybody may do.
//!
//! A name, such as an address, can be given to somebody else; an account (`iss` and `sub`) never is. So the first account that
//! signs in under a name keeps it, until an administrator says otherwise.

use proto::types::SubjectId;

use super::Refusal;

/// An account at an issuer: no other person ever gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Exactly as it stands in tokens.
    pub issuer: String,
    /// The issuer's name for it (`sub`).
    pub name: String,
}

/// What follows for somebody who is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// It was made before, and is the same.
    Kept,
    /// It is to be made.
    Made,
}

/// Whether an account may be a subject. `bound`: the account that the subject belongs to; `owner`: the subject that the account
/// belongs to. None: to none yet.
pub fn bind(
    subject: &SubjectId,
    account: &Account,
    bound: Option<&Account>,
    owner: Option<&SubjectId>,
) -> Result<Binding, Refusal> {
    match (bound, owner) {
        (Some(bound), _) if bound != account => Err(Refusal::OtherAccount {
            subject: subject.clone(),
            same_issuer: bound.issuer == account.issuer,
        }),
        (_, Some(owner)) if owner != subject => {
            Err(Refusal::OtherName { subject: subject.clone(), owner: owner.clone() })
        }
        (Some(_), _) => Ok(Binding::Kept),
        (None, _) => Ok(Binding::Made),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(issuer: &str, name: &str) -> Account {
        Account { issuer: issuer.to_owned(), name: name.to_owned() }
    }

    #[test]
    fn a_name_stays_with_its_first_account() {
        let subject = |id: &str| id.parse::<SubjectId>().expect("valid");
        let (alice, bob) = (subject("user:alice@example.com"), subject("user:bob@example.com"));
        let hers = account("https://a", "1");
        assert_eq!(bind(&alice, &hers, None, None), Ok(Binding::Made));
        assert_eq!(bind(&alice, &hers, Some(&hers), Some(&alice)), Ok(Binding::Kept));
        let other = |same_issuer| Err(Refusal::OtherAccount { subject: alice.clone(), same_issuer });
        // The address was given to somebody else; another provider gives the same name.
        assert_eq!(bind(&alice, &account("https://a", "2"), Some(&hers), None), other(true));
        assert_eq!(bind(&alice, &account("https://b", "1"), Some(&hers), None), other(false));
        // Her name at the provider was changed: she would be somebody who may approve what she asked for.
        let renamed = Err(Refusal::OtherName { subject: bob.clone(), owner: alice.clone() });
        assert_eq!(bind(&bob, &hers, None, Some(&alice)), renamed);
        let his = account("https://a", "3");
        let taken = Err(Refusal::OtherAccount { subject: bob.clone(), same_issuer: true });
        assert_eq!(bind(&bob, &hers, Some(&his), Some(&alice)), taken);
    }

    proptest::proptest! {
        /// Whatever comes in whatever order, a subject never changes its account, nor an account its subject.
        #[test]
        fn bindings_are_one_to_one(tries in proptest::collection::vec((0_usize..4, 0_usize..4, 0_usize..2), 0..40)) {
            let mut bound: Vec<(SubjectId, Account)> = Vec::new();
            for (who, what, issuer) in tries {
                let subject: SubjectId = format!("user:{who}").parse().expect("valid");
                let account = account(&format!("https://{issuer}"), &what.to_string());
                let of_subject = bound.iter().find(|(id, _)| *id == subject).map(|(_, account)| account);
                let owner = bound.iter().find(|(_, known)| *known == account).map(|(id, _)| id);
                let is_known = bound.contains(&(subject.clone(), account.clone()));
                match bind(&subject, &account, of_subject, owner) {
                    Ok(Binding::Kept) => proptest::prop_assert!(is_known),
                    Ok(Binding::Made) => {
                        proptest::prop_assert!(of_subject.is_none() && owner.is_none());
                        bound.push((subject, account));
                    }
                    Err(_) => proptest::prop_assert!(!is_known),
                }
            }
        }
    }
}
