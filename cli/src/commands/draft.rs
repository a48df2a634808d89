//! `portcullis draft …`

use proto::types::{Draft, DraftId};
use proto::wire::access::{DropDraftRequest, ListDraftsRequest};

use super::LIST_MAX;
use crate::Context;
use crate::args::checked;
use crate::connect::{ControlPlane, call};
use crate::error::Error;
use crate::output::drafts::DraftRow;

/// The draft of a request, which a denied attempt has opened: give it up
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    /// Give a draft up; the next denied attempt opens another one
    #[command(after_help = "\
Example:
  portcullis draft drop 019aac20-1f4e-7d22-8c55-0a9b8c7d6e61")]
    Drop(Drop),
}

/// The arguments of `drop`.
#[derive(clap::Args, Debug)]
pub struct Drop {
    /// The draft, as `drafts` shows it
    #[arg(value_parser = checked::<DraftId>)]
    draft: DraftId,
}

pub(super) async fn run(verb: Verb, context: &mut Context<'_>) -> Result<(), Error> {
    let Verb::Drop(Drop { draft }) = verb;
    let what = format!("drop draft {draft}");
    let mut access = context.connect().await?.access();
    let answer = call(&what, access.drop_draft(DropDraftRequest { id: draft.to_string() })).await?;
    let draft: Draft = super::checked(&what, answer.draft)?;
    context.print_one(&DraftRow::from(draft))
}

/// The caller's own draft of this id: what a request that completes it is for.
pub(super) async fn find(control_plane: &ControlPlane, id: DraftId) -> Result<Draft, Error> {
    let what = format!("look up draft {id}");
    let message = ListDraftsRequest { own: true, limit: LIST_MAX };
    let answer = call(&what, control_plane.access().list_drafts(message)).await?;
    let own: Vec<Draft> = super::rows(&what, answer.drafts)?;
    own.into_iter().find(|draft| draft.id == id).ok_or_else(|| {
        Error::Usage(format!(
            "draft {id} is none of yours, or is gone; `portcullis drafts` shows what there is"
        ))
    })
}
