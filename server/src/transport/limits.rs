//! How many connections there may be.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::coordinator::config::Limits;

/// The connections there are, by address.
#[derive(Debug)]
pub struct Connections {
    limits: Limits,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// One of them; gives its place back when dropped.
#[derive(Debug)]
pub struct Place<S: AsRef<Connections>> {
    connections: S,
    address: IpAddr,
}

impl Connections {
    pub fn new(limits: Limits) -> Self {
        Self { limits, open: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // Counts change in single steps: a panic leaves them right.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection from `address`, while there is one.
    pub fn enter<S: AsRef<Connections> + Clone>(
        connections: &S,
        address: IpAddr,
    ) -> Option<Place<S>> {
        let this = connections.as_ref();
        let address = block_of(address);
        let mut open = this.lock();
        let total: usize = open.values().sum();
        let here = open.get(&address).copied().unwrap_or(0);
        if total >= this.limits.connections || here >= this.limits.connections_per_address {
            return None;
        }
        open.insert(address, here + 1);
        drop(open);
        Some(Place { connections: connections.clone(), address })
    }
}

impl<S: AsRef<Connections>> Drop for Place<S> {
    fn drop(&mut self) {
        let mut open = self.connections.as_ref().lock();
        if let Some(here) = open.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// What one subscriber has: an address of IPv4, a /64 of IPv6.
fn block_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let bits = address.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(bits.into())
        }
        v4 => v4,
    }
}

impl AsRef<Connections> for Arc<super::Shared> {
    fn as_ref(&self) -> &Connections {
        &self.connections
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Shared(Arc<Connections>);

    impl AsRef<Connections> for Shared {
        fn as_ref(&self) -> &Connections {
            &self.0
        }
    }

    #[test]
    fn places_are_limited_by_address_and_in_all_and_come_back() {
        let limits = Limits { connections: 3, connections_per_address: 2, ..Limits::default() };
        let shared = Shared(Arc::new(Connections::new(limits)));
        let enter = |text: &str| Connections::enter(&shared, text.parse().unwrap());
        let first = enter("10.0.0.1").unwrap();
        let _second = enter("10.0.0.1").unwrap();
        assert!(enter("10.0.0.1").is_none());
        assert!(enter("::ffff:10.0.0.1").is_none(), "the same address in other words");
        let third = enter("2001:db8::1").unwrap();
        assert!(enter("10.0.0.2").is_none(), "three are all");
        drop(first);
        let _fourth = enter("2001:db8::2:1").unwrap();
        drop(third);
        assert!(enter("10.0.0.1").is_some());
    }
}
