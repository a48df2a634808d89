//! What is asked of the control plane about its policy: what one would do, putting it in force, and those before it.

use std::path::{Path, PathBuf};

use proto::types::{NewPolicy, PolicyFiles, PolicyPlan, PolicyVersion};
use proto::wire::policy::{
    ApplyPolicyRequest, GetPolicyRequest, GetPolicyResponse, ListPoliciesRequest, PlanPolicyRequest,
};

use super::{Folder, read};
use crate::Context;
use crate::args::{Format, comment};
use crate::commands::{LIST_MAX, checked, rows, tell_if_cut};
use crate::connect::{ControlPlane, call};
use crate::error::Error;
use crate::output::policy::{FileRow, PlanRow, VersionRow};

/// The arguments of `apply`.
#[derive(clap::Args, Debug)]
pub struct Apply {
    #[command(flatten)]
    folder: Folder,
    #[command(flatten)]
    how: How,
}

/// The arguments of `rollback`.
#[derive(clap::Args, Debug)]
pub struct Rollback {
    /// The version, as `policy history` shows it
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    version: u64,
    #[command(flatten)]
    how: How,
}

/// How a policy is put in force.
#[derive(clap::Args, Debug)]
pub(super) struct How {
    /// Why, for the record: a ticket, a commit; at most 1000 characters
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, value_parser = comment)]
    comment: String,
    /// Go on, even if live grants end that the policy does not permit any more
    #[arg(long)]
    end_grants: bool,
}

/// The arguments of `show`.
#[derive(clap::Args, Debug)]
pub struct Show {
    /// The version, as `policy history` shows it; without it, the one in force
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    version: Option<u64>,
    /// Write its files into this folder, which must not be there
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

pub(super) async fn plan(folder: Folder, context: &mut Context<'_>) -> Result<(), Error> {
    let files = files(folder, context)?;
    let control_plane = context.connect().await?;
    let plan = planned(&control_plane, files).await?;
    let row = PlanRow::from(plan);
    match context.global.output {
        Format::Table | Format::Csv => context.print_list(&row.lines()),
        Format::Json => context.print_one(&row),
    }
}

pub(super) async fn apply(arguments: Apply, context: &mut Context<'_>) -> Result<(), Error> {
    let files = files(arguments.folder, context)?;
    let control_plane = context.connect().await?;
    put_in_force(&control_plane, files, None, arguments.how, context).await
}

pub(super) async fn rollback(arguments: Rollback, context: &mut Context<'_>) -> Result<(), Error> {
    let control_plane = context.connect().await?;
    let (_, files) = version(&control_plane, Some(arguments.version)).await?;
    put_in_force(&control_plane, files, Some(arguments.version), arguments.how, context).await
}

pub(super) async fn history(context: &mut Context<'_>) -> Result<(), Error> {
    let what = "list the versions of the policy";
    let mut policies = context.connect().await?.policies();
    let answer = call(what, policies.list_policies(ListPoliciesRequest { limit: LIST_MAX })).await?;
    let rows = rows::<_, PolicyVersion, VersionRow>(what, answer.versions)?;
    context.print_list(&rows)?;
    tell_if_cut(context, rows.len(), "versions");
    Ok(())
}

pub(super) async fn show(arguments: Show, context: &mut Context<'_>) -> Result<(), Error> {
    let control_plane = context.connect().await?;
    let (version, files) = version(&control_plane, arguments.version).await?;
    if let Some(folder) = &arguments.to {
        write(folder, &files)?;
    }
    let rows: Vec<FileRow> = files.into_map().into_iter().map(Into::into).collect();
    context.print_list(&rows)?;
    context.tell(&format!("version {} of the policy", version.version));
    Ok(())
}

/// The files in a folder, if they are a policy.
fn files(Folder { folder }: Folder, context: &mut Context<'_>) -> Result<PolicyFiles, Error> {
    let (files, _) = read(folder, false, context)?;
    PolicyFiles::new(files).map_err(|error| Error::Usage(error.to_string()))
}

async fn planned(control_plane: &ControlPlane, files: PolicyFiles) -> Result<PolicyPlan, Error> {
    let what = "plan the policy";
    let request = PlanPolicyRequest { files: files.into() };
    let answer = call(what, control_plane.policies().plan_policy(request)).await?;
    checked(what, answer.plan)
}

async fn version(
    control_plane: &ControlPlane,
    version: Option<u64>,
) -> Result<(PolicyVersion, PolicyFiles), Error> {
    let what = "get the policy";
    let request = GetPolicyRequest { version: version.unwrap_or(0) };
    let answer: GetPolicyResponse = call(what, control_plane.policies().get_policy(request)).await?;
    Ok((checked(what, answer.version)?, checked(what, Some(answer.files))?))
}

/// Shows what a policy does, and puts it in force.
async fn put_in_force(
    control_plane: &ControlPlane,
    files: PolicyFiles,
    restores: Option<u64>,
    how: How,
    context: &mut Context<'_>,
) -> Result<(), Error> {
    let plan = planned(control_plane, files.clone()).await?;
    let before = plan.before;
    if before != 0 && plan.is_nothing() {
        context.tell(&format!("version {before} of the policy says the same: nothing is to be done"));
        return Ok(());
    }
    let ends = plan.ends.len();
    for line in PlanRow::from(plan).lines() {
        context.tell(&line.words());
    }
    if ends > 0 && !how.end_grants {
        return Err(Error::WouldEndGrants(ends));
    }
    let what = "apply the policy";
    let new = NewPolicy { files, before, comment: how.comment, restores };
    let answer = call(what, control_plane.policies().apply_policy(ApplyPolicyRequest::from(new))).await?;
    let version: PolicyVersion = checked(what, answer.version)?;
    context.print_one(&VersionRow::from(version))
}

/// Writes files into a new folder. Their paths are those of a policy: no other is written.
fn write(folder: &Path, files: &PolicyFiles) -> Result<(), Error> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::WriteFile { what: "policy", path, source }
    };
    std::fs::create_dir(folder).map_err(failed(folder))?;
    for (name, text) in files.as_map() {
        let is_within =
            Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if !is_within {
            return Err(Error::Usage(format!("`{name}` is no path within a folder")));
        }
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed(parent))?;
        }
        std::fs::write(&path, text).map_err(failed(&path))?;
    }
    Ok(())
}
