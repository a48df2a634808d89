//! `portcullis thaw`

use proto::types::{Freeze, FreezeId};
use proto::wire::access::ThawRequest;

use crate::Context;
use crate::args::{checked, comment};
use crate::connect::call;
use crate::error::Error;
use crate::output::freezes::FreezeRow;

/// Lift a freeze before its time
///
/// What it has ended stays ended.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  portcullis thaw 019aac20-1f4e-7d22-8c55-0a9b8c7d6e60 --comment 'credentials replaced'")]
pub struct Arguments {
    /// The freeze, as `freezes` shows it
    #[arg(value_name = "ID", value_parser = checked::<FreezeId>)]
    freeze: FreezeId,
    /// A remark for the record; at most 1000 characters
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, value_parser = comment)]
    comment: String,
}

pub(super) async fn run(arguments: Arguments, context: &mut Context<'_>) -> Result<(), Error> {
    let what = format!("thaw freeze `{}`", arguments.freeze);
    let mut access = context.connect().await?.access();
    let message = ThawRequest { id: arguments.freeze.to_string(), comment: arguments.comment };
    let answer = call(&what, access.thaw(message)).await?;
    let freeze: Freeze = super::checked(&what, answer.freeze)?;
    context.print_one(&FreezeRow::from(freeze))
}
