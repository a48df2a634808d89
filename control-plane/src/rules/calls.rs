//! Who may call what: one table.
//!
//! Owns: the table. Must not know: how a caller is recognised, or what a method does.

use std::fmt::{self, Display};

use proto::types::{Credential, HostName, SubjectId, SubjectRole};

use super::actor::{Acting, Actor};

/// Who speaks, as its token or certificate says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Caller {
    /// Somebody who has shown neither.
    Nobody,
    /// A person or service.
    Subject {
        /// Which one.
        id: SubjectId,
        /// What it may do here.
        role: SubjectRole,
        /// By what it was recognised.
        credential: Credential,
    },
    /// The agent of a host.
    Host(HostName),
}

impl Caller {
    /// As the record names who caused something; None: nobody that it could name.
    pub fn actor(&self) -> Option<Actor> {
        match self {
            Self::Nobody => None,
            Self::Subject { id, credential, .. } => {
                Some(Acting { id: id.clone(), credential: *credential }.into())
            }
            Self::Host(name) => Some(Actor::Host(name.clone())),
        }
    }
}

impl Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.actor() {
            None => f.pad("nobody"),
            Some(actor) => actor.fmt(f),
        }
    }
}

/// How far a caller's right to call a method reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// It may not.
    No,
    /// For itself: requests and grants that are for it or that it asked for, requests that a policy lets it decide about; its own
    /// host.
    Own,
    /// For everybody.
    All,
}

/// Declares the methods and, in the same row, who may call each.
macro_rules! calls {
    ($($method:ident = $name:literal: $nobody:ident $member:ident $approver:ident $auditor:ident $administrator:ident $host:ident;)*) => {
        /// A method of one of the services, or a route of the console.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "the .proto files say it, and `console` does")]
        pub enum Method {
            $($method,)*
        }

        impl Method {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$method,)*];

            /// `SERVICE.METHOD`; of a route `VERB PATTERN`.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$method => $name,)*
                }
            }

            /// By the path of its calls: `/PACKAGE.SERVICE/METHOD`.
            pub fn by_path(path: &str) -> Option<Self> {
                let (service, method) = path.strip_prefix('/')?.rsplit_once('/')?;
                let service = service.rsplit('.').next()?;
                let named = |known: &&Self| known.as_str().split_once('.') == Some((service, method));
                Self::ALL.iter().find(named).copied()
            }

            /// By verb and pattern, as `GET` and `/sign-in/{provider}`.
            pub fn by_route(verb: &str, pattern: &str) -> Option<Self> {
                let named = |known: &&Self| known.as_str().split_once(' ') == Some((verb, pattern));
                Self::ALL.iter().find(named).copied()
            }

            /// For whom this caller may call it.
            pub fn reach(self, caller: &Caller) -> Reach {
                let [nobody, member, approver, auditor, administrator, host] = match self {
                    $(Self::$method => {
                        [Reach::$nobody, Reach::$member, Reach::$approver, Reach::$auditor, Reach::$administrator, Reach::$host]
                    })*
                };
                match caller {
                    Caller::Nobody => nobody,
                    Caller::Subject { role: SubjectRole::Member, .. } => member,
                    Caller::Subject { role: SubjectRole::Approver, .. } => approver,
                    Caller::Subject { role: SubjectRole::Auditor, .. } => auditor,
                    Caller::Subject { role: SubjectRole::Administrator, .. } => administrator,
                    Caller::Host(_) => host,
                }
            }
        }
    };
}

calls! {
    // method                                       nobody member approver auditor administrator host
    AddResource = "DirectoryService.AddResource":       No     No     No       No      All           No;
    ListResources = "DirectoryService.ListResources":   No     All    All      All     All           No;
    SetResource = "DirectoryService.SetResource":       No     No     No       No      All           No;
    RemoveResource = "DirectoryService.RemoveResource": No     No     No       No      All           No;
    AddSubject = "DirectoryService.AddSubject":         No     No     No       No      All           No;
    ListSubjects = "DirectoryService.ListSubjects":     No     No     No       No      All           No;
    IssueToken = "DirectoryService.IssueToken":         No     No     No       No      All           No;
    UnbindSubject = "DirectoryService.UnbindSubject":   No     No     No       No      All           No;
    DisableSubject = "DirectoryService.DisableSubject": No     No     No       No      All           No;
    EnableSubject = "DirectoryService.EnableSubject":   No     No     No       No      All           No;
    AddHost = "DirectoryService.AddHost":               No     No     No       No      All           No;
    IssueJoinToken = "DirectoryService.IssueJoinToken": No     No     No       No      All           No;
    RevokeHost = "DirectoryService.RevokeHost":         No     No     No       No      All           No;
    ListHosts = "DirectoryService.ListHosts":           No     All    All      All     All           No;
    CreateRequest = "AccessService.CreateRequest":      No     Own    Own      Own     All           No;
    ListRequests = "AccessService.ListRequests":        No     Own    All      All     All           No;
    WatchRequest = "AccessService.WatchRequest":        No     Own    All      All     All           No;
    // For themselves here: where the policy names them.
    ApproveRequest = "AccessService.ApproveRequest":    No     Own    All      Own     All           No;
    DenyRequest = "AccessService.DenyRequest":          No     Own    All      Own     All           No;
    WithdrawRequest = "AccessService.WithdrawRequest":  No     Own    Own      Own     Own           No;
    ListDrafts = "AccessService.ListDrafts":            No     Own    All      All     All           No;
    DropDraft = "AccessService.DropDraft":              No     Own    Own      Own     All           No;
    ListGrants = "AccessService.ListGrants":            No     Own    All      All     All           No;
    ListAccess = "AccessService.ListAccess":            No     Own    All      All     All           No;
    RevokeGrant = "AccessService.RevokeGrant":          No     No     All      No      All           No;
    ReleaseGrant = "AccessService.ReleaseGrant":        No     Own    Own      Own     Own           No;
    ActivateGrant = "AccessService.ActivateGrant":      No     Own    Own      Own     Own           No;
    ExtendGrant = "AccessService.ExtendGrant":          No     Own    Own      Own     Own           No;
    ListReviews = "AccessService.ListReviews":          No     Own    All      All     All           No;
    // Where the policy names them.
    ReviewGrant = "AccessService.ReviewGrant":          No     Own    Own      Own     Own           No;
    Freeze = "AccessService.Freeze":                    No     No     All      No      All           No;
    ListFreezes = "AccessService.ListFreezes":          No     All    All      All     All           No;
    Thaw = "AccessService.Thaw":                        No     No     No       No      All           No;
    OpenIncident = "AccessService.OpenIncident":        No     No     All      No      All           No;
    ListIncidents = "AccessService.ListIncidents":      No     All    All      All     All           No;
    CloseIncident = "AccessService.CloseIncident":      No     No     All      No      All           No;
    PlanPolicy = "PolicyService.PlanPolicy":            No     No     No       No      All           No;
    ApplyPolicy = "PolicyService.ApplyPolicy":          No     No     No       No      All           No;
    ListPolicies = "PolicyService.ListPolicies":        No     No     No       All     All           No;
    GetPolicy = "PolicyService.GetPolicy":              No     No     No       All     All           No;
    Tail = "AuditService.Tail":                         No     No     No       All     All           No;
    ListGrantUses = "ReportService.ListGrantUses":      No     No     No       All     All           No;
    SuggestRoles = "ReportService.SuggestRoles":        No     No     No       All     All           No;
    ListWaiting = "ReportService.ListWaiting":          No     No     All      All     All           No;
    ReviewAccess = "ReportService.ReviewAccess":        No     No     No       All     All           No;
    Session = "AgentService.Session":                   No     No     No       No      No            Own;
    Join = "EnrolmentService.Join":                     Own    No     No       No      No            No;
    Renew = "EnrolmentService.Renew":                   No     No     No       No      No            Own;
    ListProviders = "IdentityService.ListProviders":    All    All    All      All     All           No;
    SignIn = "IdentityService.SignIn":                  All    All    All      All     All           No;
    SignInWorkload = "IdentityService.SignInWorkload":  All    All    All      All     All           No;
    SignInWithCertificate = "IdentityService.SignInWithCertificate": All All All All    All           No;
    SignOut = "IdentityService.SignOut":                No     Own    Own      Own     Own           No;
    WhoAmI = "IdentityService.WhoAmI":                  No     Own    Own      Own     Own           No;
    IssueRunPass = "IdentityService.IssueRunPass":      No     Own    Own      Own     Own           No;
    // The console's routes; its visitors have a session of a browser, or none.
    Home = "GET /":                                     All    Own    Own      Own     Own           No;
    ShowRequest = "GET /requests/{id}":                 No     Own    All      All     All           No;
    ChooseProvider = "GET /sign-in":                    All    All    All      All     All           No;
    BeginSignIn = "GET /sign-in/{provider}":            All    All    All      All     All           No;
    FinishSignIn = "GET /sign-in/{provider}/callback":  All    All    All      All     All           No;
    EndSession = "POST /sign-out":                      No     Own    Own      Own     Own           No;
    SignedOut = "GET /signed-out":                      All    All    All      All     All           No;
}

/// What the table lacks of these methods and routes, and what it has besides. Both empty: it is whole.
pub fn compare(methods: &[String]) -> (Vec<String>, Vec<&'static str>) {
    let known = |method: &&String| !Method::ALL.iter().any(|known| known.as_str() == method.as_str());
    let lacking = methods.iter().filter(known).cloned().collect();
    let besides = Method::ALL.iter().map(|known| known.as_str());
    (lacking, besides.filter(|known| !methods.iter().any(|method| method == known)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn callers() -> Vec<(&'static str, Caller)> {
        let id: SubjectId = "user:alice".parse().expect("valid");
        let credential = Credential::Token;
        let subject =
            |role: SubjectRole| (role.as_str(), Caller::Subject { id: id.clone(), role, credential });
        let mut callers = vec![("nobody", Caller::Nobody)];
        callers.extend(SubjectRole::ALL.into_iter().map(subject));
        callers.push(("host", Caller::Host("db-7".parse().expect("valid"))));
        callers
    }

    #[test]
    fn who_may_call_what() {
        let mut table = format!("{:39}", "");
        for (name, _) in callers() {
            table += &format!("{name:14}");
        }
        for method in Method::ALL {
            table += &format!("\n{:39}", method.as_str());
            for (_, caller) in callers() {
                table += &format!("{:14}", format!("{:?}", method.reach(&caller)).to_lowercase());
            }
        }
        let table: Vec<&str> = table.lines().map(str::trim_end).collect();
        insta::assert_snapshot!(table.join("\n"));
    }

    #[test]
    fn the_table_is_whole() {
        let all = [proto::methods(), crate::console::names()].concat();
        assert_eq!(compare(&all), (Vec::new(), Vec::new()));
        let methods = ["AccessService.Bypass".to_owned()];
        let (lacking, besides) = compare(&methods);
        assert_eq!(lacking, methods);
        assert_eq!(besides.len(), Method::ALL.len());
    }

    #[test]
    fn methods_are_found_by_their_paths() {
        assert_eq!(Method::by_path("/portcullis.audit.v1.AuditService/Tail"), Some(Method::Tail));
        for path in
            ["", "/", "/Tail", "/portcullis.audit.v1.AuditService/", "/portcullis.audit.v1.AuditService/Head"]
        {
            assert_eq!(Method::by_path(path), None, "{path}");
        }
        assert_eq!(Method::by_route("GET", "/sign-in"), Some(Method::ChooseProvider));
        for (verb, pattern) in [("POST", "/sign-in"), ("GET", ""), ("", ""), ("GET", "/sign-in/corp")] {
            assert_eq!(Method::by_route(verb, pattern), None, "{verb} {pattern}");
        }
    }
}
