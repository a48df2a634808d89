//! `portcullis resource …`

use clap::ArgGroup;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use proto::types::{
    Address, NewResource, Outage, PortRange, Prefix, Resource, ResourceChange, ResourceMode, ResourceName,
    ResourceOptions, UnixPath,
};
use proto::wire::access::{AddResourceRequest, ListResourcesRequest, RemoveResourceRequest};

use crate::Context;
use crate::args::{self, checked};
use crate::connect::call;
use crate::error::Error;
use crate::output::rows::{RemovedRow, ResourceRow};

/// Protected destinations: show them, protect another one, change how one is guarded, give one up
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    /// Protect a destination: from now on every host denies connections to it without a grant
    ///
    /// Begin with `--mode observe` where something already runs: nobody is refused, and `audit tail` tells who would be. Add
    /// the grants that are missing, then `portcullis resource set NAME --mode enforce`.
    #[command(after_help = "\
Examples:
  portcullis resource add db-prod --address 10.0.4.17 --port tcp/5432
  portcullis resource add db-old --address 10.0.4.18 --port tcp/5432 --mode observe
  portcullis resource add local-redis --address local --port tcp/6379
  portcullis resource add local-pg --address local --port tcp/5432 --unix /run/postgresql/.s.PGSQL.5432
  portcullis resource add ledger --address 10.0.9.1 --port tcp/5432 --strict --check-senders
  portcullis resource add games --address 10.1.0.0/16 --address 2001:db8::/32 --port tcp/80,udp/6000-6010")]
    Add(Add),
    /// Change how a resource is guarded, on every host at once
    ///
    /// No connection is dropped by it: what a change forbids ends with its next packet, connections that hold a grant go on.
    #[command(after_help = "\
Examples:
  portcullis resource set db-old --mode enforce
  portcullis resource set ledger --strict --check-senders=false
  portcullis resource set db-prod --serve-only 10.1.0.0/16,10.2.0.4
  portcullis resource set db-prod --serve-anyone")]
    Set(Set),
    /// Give up the protection of a destination: from now on everybody reaches it
    ///
    /// Refused while a grant for it has not ended. The name can be given again; requests for it have to be made anew.
    #[command(after_help = "\
Example:
  portcullis resource remove db-old")]
    Remove(Remove),
    /// Show what is protected, by name
    #[command(after_help = "\
Example:
  portcullis resource list -o json | jq -r '.[].name'")]
    List,
}

/// The arguments of `add`.
#[derive(clap::Args, Debug)]
pub struct Add {
    /// Its name: 1 to 63 of a-z, 0-9, `-` and `.`, with a letter or digit at both ends
    #[arg(value_parser = checked::<ResourceName>)]
    name: ResourceName,
    /// An address or prefix it has, IPv4 or IPv6, or `local`; give it again for each more, or separate them by commas
    ///
    /// `local` is every address by which a service on the connecting host itself can be reached: loopback, the addresses of
    /// its interfaces as they come and go, broadcast and multicast. Use it for services that every host has for itself.
    #[arg(
        long = "address",
        value_name = "CIDR",
        required_unless_present = "unix",
        requires = "ports",
        value_delimiter = ','
    )]
    #[arg(value_parser = checked::<Address>)]
    addresses: Vec<Address>,
    /// A port it has, such as `tcp/5432` or `udp/6000-6010`; give it again for each more, or separate them by commas
    #[arg(
        long = "port",
        value_name = "PROTOCOL/PORT",
        required_unless_present = "unix",
        requires = "addresses",
        value_delimiter = ','
    )]
    #[arg(value_parser = checked::<PortRange>)]
    ports: Vec<PortRange>,
    /// The path of a unix socket it has on the connecting host; give it again for each more
    ///
    /// Beside addresses and ports, or instead of them. Connections and datagrams to that path are judged, whichever process
    /// listens there. It needs the agent's `lsm` setting and Linux 5.16 or newer: other hosts say that they do not protect it.
    #[arg(long = "unix", value_name = "PATH", value_parser = checked::<UnixPath>)]
    unix: Vec<UnixPath>,
    /// What happens to a connection without a grant: `enforce` denies it, `observe` lets it through and records it
    #[arg(long, value_name = "MODE", default_value = "enforce", value_parser = mode())]
    mode: ResourceMode,
    /// No record, no access: refuse a connection whose record finds no room, instead of counting the loss
    ///
    /// For what must never be reached without a trace. A flood of connections can then keep others out.
    #[arg(long)]
    strict: bool,
    /// Judge each write by who writes, not only by who connected
    ///
    /// For what must not be used over a connection that its holder hands to another process. It costs time for each write.
    #[arg(long)]
    check_senders: bool,
    /// Have the hosts that own it serve only this address or prefix; give it again for each more, or separate them by commas
    ///
    /// Name the hosts that have an agent: their own gates judge their processes. What others send is dropped where it arrives,
    /// even if its address or port was translated on the way. Without this option it is served everywhere.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = checked::<Prefix>)]
    serve_only: Vec<Prefix>,
    /// What becomes of live grants on a host that does not hear the control plane: `hold`, `cut` or `shrink:TIME`
    ///
    /// Nobody new is let through in any case. `hold`: what is granted goes on to its deadline. `cut`: it ends within 15 seconds.
    /// `shrink:5m`: it goes on for 5 minutes at most. The host's kernel sees to it, whatever becomes of the agent; when the
    /// control plane is heard again, what is still granted is let through again.
    #[arg(long, value_name = "WHAT", default_value_t = Outage::HOLD, value_parser = args::outage)]
    outage: Outage,
    /// Have a denied attempt open the draft of a request, which who was denied can complete: see `drafts`
    #[arg(long)]
    drafts: bool,
}

/// The arguments of `set`.
#[derive(clap::Args, Debug)]
#[command(group(ArgGroup::new("options").required(true).multiple(true)))]
pub struct Set {
    /// Its name
    #[arg(value_parser = checked::<ResourceName>)]
    name: ResourceName,
    /// What happens to a connection without a grant: `enforce` denies it, `observe` lets it through and records it
    #[arg(long, group = "options", value_name = "MODE", value_parser = mode())]
    mode: Option<ResourceMode>,
    /// No record, no access: refuse a connection whose record finds no room; `--strict=false` counts the loss instead
    #[arg(long, group = "options", value_name = "BOOL")]
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    strict: Option<bool>,
    /// Judge each write by who writes; with `--check-senders=false` who connected counts
    #[arg(long, group = "options", value_name = "BOOL")]
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    check_senders: Option<bool>,
    /// Have the hosts that own it serve only these addresses and prefixes, in the place of those so far
    #[arg(long, group = "options", value_name = "CIDR", value_delimiter = ',')]
    #[arg(value_parser = checked::<Prefix>, conflicts_with = "serve_anyone")]
    serve_only: Option<Vec<Prefix>>,
    /// Have them serve it everywhere again
    #[arg(long, group = "options")]
    serve_anyone: bool,
    /// What becomes of live grants on a host that does not hear the control plane: `hold`, `cut` or `shrink:TIME`
    #[arg(long, group = "options", value_name = "WHAT", value_parser = args::outage)]
    outage: Option<Outage>,
    /// Have a denied attempt open the draft of a request: see `drafts`; with `--drafts=false` it opens none
    #[arg(long, group = "options", value_name = "BOOL")]
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    drafts: Option<bool>,
}

/// The arguments of `remove`.
#[derive(clap::Args, Debug)]
pub struct Remove {
    /// Its name
    #[arg(value_parser = checked::<ResourceName>)]
    name: ResourceName,
}

/// Modes, which `--help` lists.
fn mode() -> impl TypedValueParser<Value = ResourceMode> {
    PossibleValuesParser::new(ResourceMode::ALL.map(ResourceMode::as_str))
        .try_map(|text| text.parse::<ResourceMode>())
}

pub(super) async fn run(verb: Verb, context: &mut Context<'_>) -> Result<(), Error> {
    match verb {
        Verb::Add(arguments) => add(arguments, context).await,
        Verb::Set(arguments) => set(arguments, context).await,
        Verb::Remove(arguments) => remove(arguments, context).await,
        Verb::List => list(context).await,
    }
}

async fn add(arguments: Add, context: &mut Context<'_>) -> Result<(), Error> {
    let what = format!("add resource `{}`", arguments.name);
    let Add { name, addresses, ports, unix, mode, strict, check_senders, serve_only, outage, drafts } =
        arguments;
    let usage = |error| Error::Usage(format!("cannot {what}: {error}"));
    let serve_only = ResourceOptions::peers(serve_only).map_err(usage)?;
    let new = NewResource::with_unix(name, addresses, ports, unix).map_err(usage)?;
    let options = ResourceOptions { mode, strict, check_senders, serve_only, outage, drafts };
    let new = NewResource { options, ..new };
    let mut directory = context.connect().await?.directory();
    let message = AddResourceRequest { resource: Some(new.into()) };
    let answer = call(&what, directory.add_resource(message)).await?;
    let resource: Resource = super::checked(&what, answer.resource)?;
    context.print_one(&ResourceRow::from(resource))
}

async fn set(arguments: Set, context: &mut Context<'_>) -> Result<(), Error> {
    let Set { name, mode, strict, check_senders, serve_only, serve_anyone, outage, drafts } = arguments;
    let what = format!("change resource `{name}`");
    let serve_only = if serve_anyone { Some(Vec::new()) } else { serve_only };
    let serve_only = serve_only.map(ResourceOptions::peers).transpose();
    let serve_only = serve_only.map_err(|error| Error::Usage(format!("cannot {what}: {error}")))?;
    let change = ResourceChange { name, mode, strict, check_senders, serve_only, outage, drafts };
    let mut directory = context.connect().await?.directory();
    let answer =
        call(&what, directory.set_resource(proto::wire::access::SetResourceRequest::from(change))).await?;
    let resource: Resource = super::checked(&what, answer.resource)?;
    context.print_one(&ResourceRow::from(resource))
}

async fn remove(arguments: Remove, context: &mut Context<'_>) -> Result<(), Error> {
    let name = String::from(arguments.name);
    let what = format!("remove resource `{name}`");
    let mut directory = context.connect().await?.directory();
    call(&what, directory.remove_resource(RemoveResourceRequest { name: name.clone() })).await?;
    context.print_one(&RemovedRow { removed: name })
}

async fn list(context: &mut Context<'_>) -> Result<(), Error> {
    let what = "list resources";
    let mut directory = context.connect().await?.directory();
    let answer = call(what, directory.list_resources(ListResourcesRequest {})).await?;
    context.print_list(&super::rows::<_, Resource, ResourceRow>(what, answer.resources)?)
}
