//! How many connections there may be, in all and from one place.
//!
//! Owns: counting. Must not know: what a connection is.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Room for so many, of which each place may take a part.
#[derive(Debug)]
pub(super) struct Room {
    max: usize,
    max_of_place: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    in_all: usize,
    /// Bounded by the room.
    by_place: HashMap<IpAddr, usize>,
}

/// Taken until it is dropped.
#[derive(Debug)]
pub(super) struct Stay {
    room: Arc<Room>,
    place: IpAddr,
}

impl Room {
    pub(super) fn new(max: usize, max_of_place: usize) -> Arc<Self> {
        Arc::new(Self { max, max_of_place, taken: Mutex::default() })
    }

    /// None: it is full, or the place has its part.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Stay> {
        let place = place_of(address);
        let mut taken = self.lock();
        let of_place = taken.by_place.get(&place).copied().unwrap_or(0);
        if taken.in_all >= self.max || of_place >= self.max_of_place {
            return None;
        }
        taken.in_all += 1;
        taken.by_place.insert(place, of_place + 1);
        Some(Stay { room: Arc::clone(self), place })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        // Nothing that holds the lock can panic half way through a change.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let mut taken = self.room.lock();
        taken.in_all -= 1;
        match taken.by_place.get_mut(&self.place) {
            Some(of_place) if *of_place > 1 => *of_place -= 1,
            _ => drop(taken.by_place.remove(&self.place)),
        }
    }
}

/// Whoever has one address of IPv6 has the whole network of 64 bits.
fn place_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) & (u128::MAX << 64))),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_has_its_part() {
        let room = Room::new(3, 2);
        let enter = |address: &str| room.enter(address.parse().expect("valid"));
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
        assert_eq!(room.lock().by_place.len(), 1);
    }
}
