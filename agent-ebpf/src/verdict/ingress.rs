//! The decision about a packet that has arrived: whether its resource is served where it comes from.
//!
//! Says why it is held back; None: it goes on, and nothing is recorded.

use super::Reason;
use crate::abi::ResourceEntry;

/// Decides about a packet that has arrived for a resource. `is_local`: its sender is of this network namespace, whose own packets
/// are judged on their way out. `is_served` says whether the resource is served at its source, and is asked only if it matters.
#[inline(always)]
pub fn decide_arrival(
    resource: &ResourceEntry,
    is_local: bool,
    is_served: impl FnOnce() -> bool,
) -> Option<Reason> {
    if !resource.has(ResourceEntry::PEERS) || is_local || is_served() {
        return None;
    }
    Some(Reason::PeerNotServed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Verdict;

    #[test]
    fn who_is_served() {
        let resource = |flags| ResourceEntry { number: 1, flags };
        let nobody = || -> bool { panic!("nobody need be asked") };
        assert_eq!(decide_arrival(&resource(0), false, nobody), None);
        let limited = resource(ResourceEntry::PEERS | ResourceEntry::STRICT);
        assert_eq!(decide_arrival(&limited, true, nobody), None);
        assert_eq!(decide_arrival(&limited, false, || true), None);
        assert_eq!(decide_arrival(&limited, false, || false), Some(Reason::PeerNotServed));
    }

    #[test]
    fn where_it_is_only_observed_everybody_is() {
        for (flags, verdict) in [(0, Verdict::Deny), (ResourceEntry::OBSERVE, Verdict::WouldDeny)] {
            let resource = ResourceEntry { number: 1, flags: ResourceEntry::PEERS | flags };
            let reason = decide_arrival(&resource, false, || false).expect("it is not served");
            assert_eq!(reason.verdict(Some(&resource)), verdict);
        }
    }
}
