//! `portcullis whoami`

use proto::types::SubjectIdentity;
use proto::wire::identity::WhoAmIRequest;

use crate::Context;
use crate::connect::call;
use crate::error::Error;
use crate::output::rows::IdentityRow;

/// Show whom the control plane takes you for
///
/// CREDENTIAL is `session` (signed in with the identity provider PROVIDER, until UNTIL), `workload` (a job's, with a token of the
/// issuer PROVIDER) or `token` (a static token, which an administrator issued).
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  portcullis whoami
  portcullis whoami -o json | jq -r .subject")]
pub struct Arguments {}

pub(super) async fn run(_: Arguments, context: &mut Context<'_>) -> Result<(), Error> {
    let what = "ask who you are";
    let mut identity = context.connect().await?.identity();
    let answer = call(what, identity.who_am_i(WhoAmIRequest {})).await?;
    let identity: SubjectIdentity = super::checked(what, answer.identity)?;
    context.print_one(&IdentityRow::from(identity))
}
