//! `portcullis subject …`

use proto::types::{NewSubject, Selector, Subject, SubjectId, SubjectRole};
use proto::wire::access::{
    self as wire, AddSubjectRequest, DisableSubjectRequest, EnableSubjectRequest, IssueTokenRequest,
    ListSubjectsRequest, UnbindSubjectRequest,
};

use super::token::{Destination, Owner};
use crate::Context;
use crate::args::{self, checked, role};
use crate::connect::call;
use crate::error::Error;
use crate::output::rows::SubjectRow;

/// People and services that access is for: show them, add one, issue a token
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    /// Make a person or service known
    #[command(after_help = "\
Examples:
  portcullis subject add user:alice@example.com --selector unix-user:alice
  portcullis subject add workload:ci/deploy --selector systemd-unit:ci-runner.service
  portcullis subject add workload:billing --selector kubernetes:prod/billing
  portcullis subject add user:bob@example.com --role approver")]
    Add(Add),
    /// Show them all, by id
    #[command(after_help = "\
Example:
  portcullis subject list -o json | jq -r '.[] | select(.role == \"approver\").id'")]
    List,
    /// Issue a new token, with which the subject signs in; it ends the one before
    ///
    /// The token is shown once, alone on standard output; the control plane keeps its hash only.
    #[command(after_help = "\
Examples:
  portcullis subject token user:alice@example.com | wl-copy
  portcullis subject token workload:ci/deploy --new-token-file /etc/ci/portcullis.token")]
    Token(Token),
    /// Let another account of an identity provider have a person's name
    ///
    /// A name belongs to the first account that signs in under it, for names can be given to somebody else. This takes it away,
    /// and ends all sessions of the person: the next account that signs in under the name has it, with its role, selectors and
    /// live grants. So look first who that will be, and revoke what the new one should not have.
    #[command(after_help = "\
Example:
  portcullis subject unbind user:alice@example.com --comment 'new account at the provider, HR-311'")]
    Unbind(Unbind),
    /// Shut somebody out, at once: sessions, tokens, live grants and open requests
    ///
    /// Nobody can disable themselves. What has ended stays ended, also when they are enabled again.
    #[command(after_help = "\
Example:
  portcullis subject disable user:alice@example.com --comment 'HR-311: has left'")]
    Disable(Somebody),
    /// Let somebody in again who was disabled
    #[command(after_help = "\
Example:
  portcullis subject enable user:alice@example.com")]
    Enable(Somebody),
}

/// The arguments of `add`.
#[derive(clap::Args, Debug)]
pub struct Add {
    /// `user:NAME` or `workload:NAME`; NAME is 1 to 128 of a-z, 0-9, `.`, `_`, `-`, `@`, `/`, `+`
    #[arg(value_parser = checked::<SubjectId>)]
    id: SubjectId,
    /// How its processes are found on a host; give it again for each more
    ///
    /// One of `cgroup:/PATH`, `unix-user:NAME-OR-UID` (the account's systemd slice), `systemd-unit:NAME`, `container:ID` (64
    /// digits, or at least the first 12), `kubernetes:NAMESPACE/SERVICE-ACCOUNT`, `kubernetes:NAMESPACE?LABEL=VALUE,...`.
    /// Without one it can sign in and approve, but no process belongs to it.
    #[arg(long = "selector", value_name = "SELECTOR", value_parser = checked::<Selector>)]
    selectors: Vec<Selector>,
    /// What it may do at the control plane
    ///
    /// A member asks for itself. An approver also decides about others' requests and revokes grants. An auditor is a member
    /// who reads the audit record and everybody's requests and grants. An administrator may do everything.
    #[arg(long, default_value = "member", value_parser = role())]
    role: SubjectRole,
}

/// The arguments of `token`.
#[derive(clap::Args, Debug)]
pub struct Token {
    /// Whose token: `user:NAME` or `workload:NAME`
    #[arg(value_parser = checked::<SubjectId>)]
    id: SubjectId,
    #[command(flatten)]
    destination: Destination,
}

/// The arguments of `unbind`.
#[derive(clap::Args, Debug)]
pub struct Unbind {
    /// Whose name: `user:NAME`
    #[arg(value_parser = checked::<SubjectId>)]
    id: SubjectId,
    /// Why, for the record
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, value_parser = args::comment)]
    comment: String,
}

/// The arguments of `disable` and `enable`.
#[derive(clap::Args, Debug)]
pub struct Somebody {
    /// Who: `user:NAME` or `workload:NAME`
    #[arg(value_parser = checked::<SubjectId>)]
    id: SubjectId,
    /// Why, for the record
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, value_parser = args::comment)]
    comment: String,
}

pub(super) async fn run(verb: Verb, context: &mut Context<'_>) -> Result<(), Error> {
    match verb {
        Verb::Add(arguments) => add(arguments, context).await,
        Verb::List => list(context).await,
        Verb::Token(arguments) => token(arguments, context).await,
        Verb::Unbind(arguments) => unbind(arguments, context).await,
        Verb::Disable(arguments) => disable(arguments, context).await,
        Verb::Enable(arguments) => enable(arguments, context).await,
    }
}

async fn add(arguments: Add, context: &mut Context<'_>) -> Result<(), Error> {
    let Add { id, selectors, role } = arguments;
    let what = format!("add subject `{id}`");
    // By way of the wire, which checks the parts against each other.
    let new = NewSubject::try_from(wire::Subject::from(NewSubject { id, selectors, role }))
        .map_err(|error| Error::Usage(format!("cannot {what}: {error}")))?;
    let mut directory = context.connect().await?.directory();
    let message = AddSubjectRequest { subject: Some(new.into()) };
    let answer = call(&what, directory.add_subject(message)).await?;
    let subject: Subject = super::checked(&what, answer.subject)?;
    context.print_one(&SubjectRow::from(subject))
}

async fn list(context: &mut Context<'_>) -> Result<(), Error> {
    let what = "list subjects";
    let mut directory = context.connect().await?.directory();
    let answer = call(what, directory.list_subjects(ListSubjectsRequest {})).await?;
    let mut rows = super::rows::<_, Subject, SubjectRow>(what, answer.subjects)?;
    for row in &mut rows {
        row.disabled = answer.disabled.contains_key(&row.id);
    }
    context.print_list(&rows)
}

async fn token(arguments: Token, context: &mut Context<'_>) -> Result<(), Error> {
    let subject = arguments.id.to_string();
    let destination = arguments.destination.prepare()?;
    let mut directory = context.connect().await?.directory();
    let what = format!("issue a token for `{subject}`");
    let message = IssueTokenRequest { subject: subject.clone() };
    let answer = call(what, directory.issue_token(message)).await?;
    destination.deliver(context, Owner::Subject(subject), answer.token)
}

async fn disable(arguments: Somebody, context: &mut Context<'_>) -> Result<(), Error> {
    let subject = arguments.id.to_string();
    let mut directory = context.connect().await?.directory();
    let what = format!("disable `{subject}`");
    let message = DisableSubjectRequest { subject: subject.clone(), comment: arguments.comment };
    let answer = call(what, directory.disable_subject(message)).await?;
    let (grants, requests) = (answer.grants, answer.requests);
    context.tell(&format!("`{subject}` is shut out; grants that end: {grants}, requests denied: {requests}"));
    Ok(())
}

async fn enable(arguments: Somebody, context: &mut Context<'_>) -> Result<(), Error> {
    let subject = arguments.id.to_string();
    let mut directory = context.connect().await?.directory();
    let what = format!("enable `{subject}`");
    let message = EnableSubjectRequest { subject: subject.clone(), comment: arguments.comment };
    call(what, directory.enable_subject(message)).await?;
    context.tell(&format!("`{subject}` is let in again"));
    Ok(())
}

async fn unbind(arguments: Unbind, context: &mut Context<'_>) -> Result<(), Error> {
    let subject = arguments.id.to_string();
    let mut directory = context.connect().await?.directory();
    let what = format!("unbind `{subject}`");
    let message = UnbindSubjectRequest { subject: subject.clone(), comment: arguments.comment };
    call(what, directory.unbind_subject(message)).await?;
    context.tell(&format!("the next account that signs in as `{subject}` has this name"));
    Ok(())
}
