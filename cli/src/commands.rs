//! The verbs, a file each: arguments, the calls, what is printed.

pub mod activate;
pub mod approve;
pub mod audit;
pub mod deny;
pub mod draft;
pub mod drafts;
pub mod extend;
pub mod freeze;
pub mod freezes;
pub mod grants;
pub mod host;
pub mod incident;
pub mod incidents;
pub mod login;
pub mod logout;
pub mod policy;
pub mod release;
pub mod report;
pub mod request;
pub mod requests;
pub mod resource;
pub mod review;
pub mod reviews;
pub mod revoke;
pub mod run;
pub mod status;
pub mod subject;
pub mod thaw;
pub mod who_has;
pub mod whoami;
pub mod withdraw;

mod action;
mod token;
mod wait;

use proto::types::Invalid;

use crate::Context;
use crate::args::Format;
use crate::error::Error;

/// What people type first.
#[derive(Debug, clap::Subcommand)]
#[allow(missing_docs, reason = "clap would print it in place of the arguments' own text")]
pub enum Command {
    Login(login::Arguments),
    Logout(logout::Arguments),
    Whoami(whoami::Arguments),
    #[command(subcommand)]
    Resource(resource::Verb),
    #[command(subcommand)]
    Subject(subject::Verb),
    #[command(subcommand)]
    Host(host::Verb),
    Request(request::Arguments),
    Requests(requests::Arguments),
    Approve(approve::Arguments),
    Deny(deny::Arguments),
    Withdraw(withdraw::Arguments),
    Drafts(drafts::Arguments),
    #[command(subcommand)]
    Draft(draft::Verb),
    Grants(grants::Arguments),
    WhoHas(who_has::Arguments),
    Revoke(revoke::Arguments),
    Release(release::Arguments),
    Activate(activate::Arguments),
    Extend(extend::Arguments),
    Reviews(reviews::Arguments),
    Review(review::Arguments),
    Freeze(freeze::Arguments),
    Freezes(freezes::Arguments),
    Thaw(thaw::Arguments),
    #[command(subcommand)]
    Report(report::Verb),
    #[command(subcommand)]
    Incident(incident::Verb),
    Incidents(incidents::Arguments),
    Run(run::Arguments),
    #[command(subcommand)]
    Audit(audit::Verb),
    Status(status::Arguments),
    #[command(subcommand)]
    Policy(policy::Verb),
}

pub(crate) async fn run(command: Command, context: &mut Context<'_>) -> Result<(), Error> {
    // Before anything is asked for: nothing is to happen whose result cannot be printed.
    if context.global.output == Format::Csv && !matches!(command, Command::Report(report::Verb::Review(_))) {
        return Err(Error::Usage("`-o csv` is for `report review` alone: write `-o json`".to_owned()));
    }
    match command {
        Command::Login(arguments) => login::run(arguments, context).await,
        Command::Logout(arguments) => logout::run(arguments, context).await,
        Command::Whoami(arguments) => whoami::run(arguments, context).await,
        Command::Resource(verb) => resource::run(verb, context).await,
        Command::Subject(verb) => subject::run(verb, context).await,
        Command::Host(verb) => host::run(verb, context).await,
        Command::Request(arguments) => request::run(arguments, context).await,
        Command::Requests(arguments) => requests::run(arguments, context).await,
        Command::Approve(arguments) => approve::run(arguments, context).await,
        Command::Deny(arguments) => deny::run(arguments, context).await,
        Command::Withdraw(arguments) => withdraw::run(arguments, context).await,
        Command::Drafts(arguments) => drafts::run(arguments, context).await,
        Command::Draft(verb) => draft::run(verb, context).await,
        Command::Grants(arguments) => grants::run(arguments, context).await,
        Command::WhoHas(arguments) => who_has::run(arguments, context).await,
        Command::Revoke(arguments) => revoke::run(arguments, context).await,
        Command::Release(arguments) => release::run(arguments, context).await,
        Command::Activate(arguments) => activate::run(arguments, context).await,
        Command::Extend(arguments) => extend::run(arguments, context).await,
        Command::Reviews(arguments) => reviews::run(arguments, context).await,
        Command::Review(arguments) => review::run(arguments, context).await,
        Command::Freeze(arguments) => freeze::run(arguments, context).await,
        Command::Freezes(arguments) => freezes::run(arguments, context).await,
        Command::Thaw(arguments) => thaw::run(arguments, context).await,
        Command::Report(verb) => report::run(verb, context).await,
        Command::Incident(verb) => incident::run(verb, context).await,
        Command::Incidents(arguments) => incidents::run(arguments, context).await,
        Command::Run(arguments) => run::run(arguments, context).await,
        Command::Audit(verb) => audit::run(verb, context).await,
        Command::Status(arguments) => status::run(arguments, context).await,
        Command::Policy(verb) => policy::run(verb, context).await,
    }
}

/// Turns a part of an answer into its checked type. `what` completes "cannot …".
pub(crate) fn checked<W, T: TryFrom<W, Error = Invalid>>(what: &str, part: Option<W>) -> Result<T, Error> {
    let checked = part.ok_or_else(|| Invalid::missing("")).and_then(TryInto::try_into);
    checked.map_err(|error| Error::Malformed { what: what.to_owned(), source: error.into() })
}

/// Turns a list of an answer into rows.
fn rows<W, T: TryFrom<W, Error = Invalid>, R: From<T>>(what: &str, parts: Vec<W>) -> Result<Vec<R>, Error> {
    parts.into_iter().map(|part| Ok(checked::<W, T>(what, Some(part))?.into())).collect()
}

/// What one list call gives at most. Asked for always: whoever filters the output wants all there is.
const LIST_MAX: u32 = proto::types::GRANT_LIMIT_MAX;

/// Says so when there may be more than was listed.
fn tell_if_cut(context: &mut Context<'_>, listed: usize, things: &str) {
    if listed >= LIST_MAX as usize {
        context.tell(&format!("only the newest {LIST_MAX} {things} are shown"));
    }
}
