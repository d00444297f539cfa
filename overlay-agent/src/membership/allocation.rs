//! Which subnets a node may lease, and the choice of a free one.

use rand::{RngCore, seq::IndexedRandom};

use crate::{
    config::network::Pool,
    model::{Family, LeaseKey, PerFamily, V6, each_family},
};

/// A free subnet is chosen among so many, as flannel does: few enough to keep the network compact,
/// many enough that nodes starting together rarely collide.
const CANDIDATES: usize = 100;

/// The subnets of which nodes lease theirs.
pub type Allocation = PerFamily<Option<Pool>, Option<Pool<V6>>>;

impl Allocation {
    /// True if a node may own this subnet under this config.
    pub fn accepts(&self, key: &LeaseKey) -> bool {
        let accepts = each_family!(self.zip(key.subnets()), pair => match pair {
            (None, None) => true,
            (Some(pool), Some(subnet)) => pool.accepts(subnet),
            _ => false,
        });
        accepts.ipv4 && accepts.ipv6
    }
}

impl<F: Family> Pool<F> {
    pub(super) fn accepts(&self, subnet: F::Network) -> bool {
        F::prefix(subnet) == self.subnet_len
            && (self.subnet_min..=self.subnet_max).contains(&F::first(subnet))
    }

    /// A free subnet; `None` when all are taken.
    pub(super) fn pick(&self, taken: &[F::Network], rng: &mut dyn RngCore) -> Option<F::Network> {
        let range = Range {
            min: F::bits(self.subnet_min),
            max: F::bits(self.subnet_max),
            host_bits: F::BITS.checked_sub(self.subnet_len)?.into(),
        };
        let taken = taken
            .iter()
            .map(|&subnet| (F::bits(F::first(subnet)), F::bits(F::last(subnet))));
        let address = F::of_bits(range.pick(taken.collect(), rng)?)?;
        F::with_prefix(address, self.subnet_len)
    }
}

/// The first addresses of subnets from `min` to `max`.
struct Range {
    min: u128,
    max: u128,
    host_bits: u32,
}

impl Range {
    fn pick(&self, mut taken: Vec<(u128, u128)>, rng: &mut dyn RngCore) -> Option<u128> {
        taken.sort_unstable();
        self.free(&taken).choose(rng).copied()
    }

    /// The first free subnets. `taken` holds first and last addresses, sorted.
    fn free(&self, taken: &[(u128, u128)]) -> Vec<u128> {
        let mut free = Vec::new();
        let Some(step) = 1_u128.checked_shl(self.host_bits) else {
            return free;
        };
        let mut taken = taken.iter().peekable();
        let mut next = Some(self.min);
        while let Some(first) = next.filter(|first| *first <= self.max)
            && free.len() < CANDIDATES
        {
            let last = first | (step - 1);
            while taken.next_if(|(_, end)| *end < first).is_some() {}
            // Leases may overlap one another: the furthest end of all that reach into this
            // subnet counts.
            let blocked = taken
                .clone()
                .take_while(|(start, _)| *start <= last)
                .map(|(_, end)| *end)
                .filter(|end| *end >= first)
                .max();
            let end = blocked.map_or(last, |end| end | (step - 1));
            if blocked.is_none() {
                free.push(first);
            }
            next = end.checked_add(1);
        }
        free
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ipnetwork::Ipv4Network;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn net(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    fn key(text: &str) -> LeaseKey {
        LeaseKey::parse(text).unwrap()
    }

    fn pool(min: &str, max: &str, subnet_len: u8) -> Pool {
        Pool {
            network: net("10.3.0.0/16"),
            subnet_min: min.parse().unwrap(),
            subnet_max: max.parse().unwrap(),
            subnet_len,
        }
    }

    /// Everything 2000 draws come up with.
    fn picks(pool: &Pool, taken: &[LeaseKey]) -> BTreeSet<Ipv4Network> {
        let mut rng = StdRng::seed_from_u64(7);
        let taken: Vec<_> = taken.iter().filter_map(LeaseKey::ipv4).collect();
        (0..2000)
            .filter_map(|_| pool.pick(&taken, &mut rng))
            .collect()
    }

    #[test]
    fn the_choice_falls_evenly_among_the_first_hundred_free_subnets() {
        let pool = pool("10.3.1.0", "10.3.255.0", 24);
        let taken = [key("10.3.1.0-24"), key("10.3.5.0-24")];
        let picked = picks(&pool, &taken);
        assert_eq!(picked.len(), 100);
        assert_eq!(picked.first(), Some(&net("10.3.2.0/24")));
        assert_eq!(picked.last(), Some(&net("10.3.102.0/24")));
        assert!(!picked.contains(&net("10.3.5.0/24")));
    }

    #[test]
    fn leases_of_other_lengths_block_every_subnet_they_touch() {
        let pool = pool("10.3.0.0", "10.3.7.0", 24);
        let taken = [
            key("10.3.0.0-22"),
            key("10.3.1.0-24"),
            key("10.3.5.64-26"),
            key("10.3.5.128-25"),
        ];
        let free = ["10.3.4.0/24", "10.3.6.0/24", "10.3.7.0/24"].map(net);
        assert_eq!(picks(&pool, &taken), BTreeSet::from(free));
    }

    #[test]
    fn a_full_network_has_no_subnet_left() {
        let pool = pool("10.3.1.0", "10.3.2.0", 24);
        assert!(picks(&pool, &[key("10.3.0.0-16")]).is_empty());
        assert!(picks(&pool, &[key("10.3.1.0-24"), key("10.3.2.0-24")]).is_empty());
        assert_eq!(picks(&pool, &[key("10.3.1.0-24")]).len(), 1);
    }

    #[test]
    fn the_last_addresses_of_the_address_space_can_be_leased() {
        let pool = Pool {
            network: net("255.255.255.0/24"),
            ..pool("255.255.255.240", "255.255.255.252", 30)
        };
        assert_eq!(picks(&pool, &[]).len(), 4);
    }

    #[test]
    fn a_minimum_above_the_maximum_leaves_nothing() {
        assert!(picks(&pool("10.3.9.0", "10.3.1.0", 24), &[]).is_empty());
    }

    #[test]
    fn ipv6_subnets_are_chosen_in_the_same_way() {
        let v6 = Pool::<V6> {
            network: "fc00::/48".parse().unwrap(),
            subnet_min: "fc00:0:0:1::".parse().unwrap(),
            subnet_max: "fc00:0:0:ffff::".parse().unwrap(),
            subnet_len: 64,
        };
        let taken = ["fc00:0:0:1::/64".parse().unwrap()];
        let mut rng = StdRng::seed_from_u64(7);
        let picked: BTreeSet<_> = (0..2000)
            .filter_map(|_| v6.pick(&taken, &mut rng))
            .collect();
        assert_eq!(picked.len(), 100);
        assert_eq!(picked.first(), "fc00:0:0:2::/64".parse().ok().as_ref());
        assert_eq!(picked.last(), "fc00:0:0:65::/64".parse().ok().as_ref());
    }

    #[test]
    fn a_subnet_is_accepted_only_inside_the_range_with_the_length_and_families_of_the_config() {
        let v4 = Allocation {
            ipv4: Some(pool("10.3.1.0", "10.3.8.0", 24)),
            ipv6: None,
        };
        assert!(v4.accepts(&key("10.3.1.0-24")));
        assert!(v4.accepts(&key("10.3.8.0-24")));
        for other in [
            "10.3.0.0-24",
            "10.3.9.0-24",
            "10.3.1.0-25",
            "10.3.1.0-24&fc00::-64",
        ] {
            assert!(!v4.accepts(&key(other)), "{other}");
        }
        let dual = Allocation {
            ipv6: Some(Pool {
                network: "fc00::/48".parse().unwrap(),
                subnet_min: "fc00::".parse().unwrap(),
                subnet_max: "fc00::".parse().unwrap(),
                subnet_len: 64,
            }),
            ..v4
        };
        assert!(dual.accepts(&key("10.3.1.0-24&fc00::-64")));
        assert!(!dual.accepts(&key("10.3.1.0-24")));
        assert!(!dual.accepts(&key("10.3.1.0-24&fc00:0:0:1::-64")));
        assert!(!dual.accepts(&key("0.0.0.0-0&fc00::-64")));
        let ipv6 = Allocation { ipv4: None, ..dual };
        assert!(ipv6.accepts(&key("0.0.0.0-0&fc00::-64")));
        assert!(!ipv6.accepts(&key("10.3.1.0-24&fc00::-64")));
    }
}
