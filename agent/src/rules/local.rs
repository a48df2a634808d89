//! What "any local address" of a resource stands for on this host.
//!
//! Owns: which addresses are local everywhere, and who has what two resources claim. Must not know: how addresses were read.

use std::collections::BTreeSet;

use proto::types::{Prefix, Resource};

/// What reaches a service of the host itself, whatever its interfaces are: loopback, everybody on the link, and the multicast
/// groups, which any service may join.
const EVERYWHERE: [&str; 5] = ["127.0.0.0/8", "::1", "255.255.255.255", "224.0.0.0/4", "ff00::/8"];

/// The same resources, with the local ones spelled out: each as it was, and once more with what is local as its addresses.
///
/// The second ones come last: of two resources with the same prefix on one port the first has it, and who names an address
/// has it.
pub fn expand(resources: Vec<Resource>, local: &BTreeSet<Prefix>) -> Vec<Resource> {
    let everywhere = EVERYWHERE.iter().filter_map(|text| text.parse().ok());
    let addresses: BTreeSet<Prefix> = local.iter().copied().chain(everywhere).collect();
    let addresses: Vec<Prefix> = addresses.into_iter().collect();
    let of_local = |resource: &Resource| Resource { addresses: addresses.clone(), ..resource.clone() };
    let spelled_out: Vec<Resource> =
        resources.iter().filter(|resource| resource.local).map(of_local).collect();
    resources.into_iter().chain(spelled_out).collect()
}

#[cfg(test)]
mod tests {
    use proto::types::NewResource;

    use super::*;

    fn resource(number: u32, addresses: &[&str]) -> Resource {
        let new = NewResource::new(
            format!("r{number}").parse().expect("valid"),
            addresses.iter().map(|text| text.parse().expect("valid")).collect(),
            vec!["tcp/5432".parse().expect("valid")],
        );
        Resource::numbered(number.try_into().expect("not 0"), new.expect("valid"))
    }

    #[test]
    fn local_stands_for_this_hosts_addresses() {
        let local: BTreeSet<Prefix> = ["10.0.0.7", "10.0.0.255", "127.0.0.0/8"]
            .into_iter()
            .map(|text| text.parse().expect("valid"))
            .collect();
        let (named, both) = (resource(1, &["10.0.0.7"]), resource(2, &["local", "192.0.2.1"]));
        let expanded = expand(vec![named.clone(), both.clone()], &local);
        assert_eq!(expanded[..2], [named, both]);
        assert_eq!(expanded.len(), 3);
        let shown: Vec<String> = expanded[2].addresses.iter().map(ToString::to_string).collect();
        let expected =
            ["10.0.0.7", "10.0.0.255", "127.0.0.0/8", "224.0.0.0/4", "255.255.255.255", "::1", "ff00::/8"];
        assert_eq!(shown, expected);
        assert_eq!(expanded[2].number.get(), 2);
    }
}
