//! How many connections there may be, in all and of one: an address, a host.
//!
//! Owns: counting. Must not know: what a connection is.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Room for so many, of which each guest may take a part.
#[derive(Debug)]
pub(super) struct Room<Guest: Eq + Hash> {
    max: usize,
    max_of_guest: usize,
    taken: Mutex<Taken<Guest>>,
}

#[derive(Debug)]
struct Taken<Guest> {
    in_all: usize,
    /// Bounded by the room.
    by_guest: HashMap<Guest, usize>,
}

/// Taken until it is dropped.
#[derive(Debug)]
pub(super) struct Stay<Guest: Eq + Hash> {
    room: Arc<Room<Guest>>,
    guest: Guest,
}

impl<Guest: Clone + Eq + Hash> Room<Guest> {
    pub(super) fn new(max: usize, max_of_guest: usize) -> Arc<Self> {
        let taken = Taken { in_all: 0, by_guest: HashMap::new() };
        Arc::new(Self { max, max_of_guest, taken: Mutex::new(taken) })
    }

    /// None: it is full, or the guest has its part.
    pub(super) fn enter(self: &Arc<Self>, guest: Guest) -> Option<Stay<Guest>> {
        let mut taken = self.lock();
        let of_guest = taken.by_guest.get(&guest).copied().unwrap_or(0);
        if taken.in_all >= self.max || of_guest >= self.max_of_guest {
            return None;
        }
        taken.in_all += 1;
        taken.by_guest.insert(guest.clone(), of_guest + 1);
        Some(Stay { room: Arc::clone(self), guest })
    }
}

impl<Guest: Eq + Hash> Room<Guest> {
    fn lock(&self) -> MutexGuard<'_, Taken<Guest>> {
        // Nothing that holds the lock can panic half way through a change.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Guest: Eq + Hash> Drop for Stay<Guest> {
    fn drop(&mut self) {
        let mut taken = self.room.lock();
        taken.in_all -= 1;
        match taken.by_guest.get_mut(&self.guest) {
            Some(of_guest) if *of_guest > 1 => *of_guest -= 1,
            _ => drop(taken.by_guest.remove(&self.guest)),
        }
    }
}

/// Where somebody is: whoever has one address of IPv6 has the whole network of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place(IpAddr);

impl From<IpAddr> for Place {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) & (u128::MAX << 64))),
            address => address,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_has_its_part() {
        let room = Room::new(3, 2);
        let enter = |address: &str| room.enter(Place::from(address.parse::<IpAddr>().expect("valid")));
        let (first, _second) = (enter("10.0.0.1").expect("room"), enter("::ffff:10.0.0.1").expect("room"));
        assert!(enter("10.0.0.1").is_none(), "it has its part");
        let third = enter("2001:db8::1").expect("room");
        assert!(enter("10.0.0.2").is_none(), "it is full");
        drop(first);
        let fourth = enter("2001:db8::2").expect("room");
        assert!(enter("2001:db8::3").is_none(), "it is full");
        drop((third, fourth));
        assert!(enter("10.0.0.1").is_some());
        assert_eq!(room.lock().in_all, 1);
        assert_eq!(room.lock().by_guest.len(), 1);
    }
}
