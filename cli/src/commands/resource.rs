//! `portcullis resource …`

use proto::types::{NewResource, PortRange, Prefix, Resource, ResourceName};
use proto::wire::access::{AddResourceRequest, ListResourcesRequest};

use crate::Context;
use crate::args::checked;
use crate::connect::call;
use crate::error::Error;
use crate::output::rows::ResourceRow;

/// Protected destinations: show them, protect another one
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    /// Protect a destination: from now on every host denies connections to it without a grant
    #[command(after_help = "\
Examples:
  portcullis resource add db-prod --address 10.0.4.17 --port tcp/5432
  portcullis resource add games --address 10.1.0.0/16 --address 2001:db8::/32 --port tcp/80,udp/6000-6010")]
    Add(Add),
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
    /// An address or prefix it has, IPv4 or IPv6; give it again for each more, or separate them by commas
    #[arg(long = "address", value_name = "CIDR", required = true, value_delimiter = ',')]
    #[arg(value_parser = checked::<Prefix>)]
    addresses: Vec<Prefix>,
    /// A port it has, such as `tcp/5432` or `udp/6000-6010`; give it again for each more, or separate them by commas
    #[arg(long = "port", value_name = "PROTOCOL/PORT", required = true, value_delimiter = ',')]
    #[arg(value_parser = checked::<PortRange>)]
    ports: Vec<PortRange>,
}

pub(super) async fn run(verb: Verb, context: &mut Context<'_>) -> Result<(), Error> {
    match verb {
        Verb::Add(arguments) => add(arguments, context).await,
        Verb::List => list(context).await,
    }
}

async fn add(arguments: Add, context: &mut Context<'_>) -> Result<(), Error> {
    let what = format!("add resource `{}`", arguments.name);
    let new = NewResource::new(arguments.name, arguments.addresses, arguments.ports)
        .map_err(|error| Error::Usage(format!("cannot {what}: {error}")))?;
    let mut directory = context.connect().await?.directory();
    let message = AddResourceRequest { resource: Some(new.into()) };
    let answer = call(&what, directory.add_resource(message)).await?;
    let resource: Resource = super::checked(&what, answer.resource)?;
    context.print_one(&ResourceRow::from(resource))
}

async fn list(context: &mut Context<'_>) -> Result<(), Error> {
    let what = "list resources";
    let mut directory = context.connect().await?.directory();
    let answer = call(what, directory.list_resources(ListResourcesRequest {})).await?;
    context.print_list(&super::rows::<_, Resource, ResourceRow>(what, answer.resources)?)
}
