//! A stock flanneld, as far as its registry code goes: it creates records by compare-and-swap, renews
//! them without asking, and starts over when its own is deleted.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use rand::Rng as _;
use tokio::time::{sleep, timeout_at};

use super::{
    super::{kv::Kv, wire::Write},
    world::{Actor, LAST_IPV6, World, WorldState, now},
};
use crate::{
    core::Expect,
    model::{LeaseAttrs, LeaseKey},
};

pub async fn run(world: Arc<World>, index: usize, ip: Ipv4Addr) {
    let mut file = None;
    loop {
        let pause = world.see(|state| state.pick(Duration::from_secs(5)));
        sleep(pause).await;
        let Some(key) = acquire(&world, index, ip, file).await else {
            continue;
        };
        file = Some(key);
        keep(&world, index, ip, key).await;
    }
}

fn attrs(ip: Ipv4Addr) -> String {
    let mac = overlay_common::addr::MacAddr::new([2, 0, 0, 0, 1, ip.octets()[3]]);
    LeaseAttrs::vxlan(ip, 1, mac).encode()
}

fn is_of(kv: &Kv, ip: Ipv4Addr) -> bool {
    LeaseAttrs::decode(&kv.value).is_ok_and(|attrs| attrs.public_ip == ip)
}

async fn acquire(
    world: &World,
    index: usize,
    ip: Ipv4Addr,
    file: Option<LeaseKey>,
) -> Option<LeaseKey> {
    world.until(|state| state.away.is_none()).await;
    let (chosen, reused) = world.see(|state| state.choose(world, ip, file));
    // Others may write meanwhile.
    let pause = world.see(|state| state.pick(Duration::from_millis(50)));
    sleep(pause).await;
    world.act(Actor::Stock(index), |state, now| {
        if state.away.is_some() {
            return None;
        }
        let key = world.keys.lease(&chosen);
        if let Some(kv) = reused {
            let ttl = state.renewal.ttl;
            let lease = (kv.lease != 0).then(|| state.server.grant(now, ttl));
            let put = state.server.put(now, &kv.key, attrs(ip).as_bytes(), lease);
            state.count("stock nodes that found their lease");
            return put.is_ok().then_some(chosen);
        }
        let write = Write {
            key,
            value: attrs(ip),
            lease: Some(state.server.grant(now, state.renewal.ttl)),
            expect: Expect::Absent,
        };
        let ended = state.server.write(now, &write);
        let done = ended.is_ok_and(|ended| ended.done);
        state.count(if done {
            "stock nodes that took a subnet"
        } else {
            "stock nodes that lost a race"
        });
        done.then_some(chosen)
    })
}

impl WorldState {
    /// The subnet, and the record if there is one.
    fn choose(
        &mut self,
        world: &World,
        ip: Ipv4Addr,
        file: Option<LeaseKey>,
    ) -> (LeaseKey, Option<Kv>) {
        let records = || {
            let kvs = self.server.kvs();
            kvs.filter_map(|kv| Some((world.keys.parse(kv)?, kv)))
        };
        let fits = |key: &LeaseKey| {
            let pool = self.pool.0..=self.pool.1;
            key.ipv4()
                .is_some_and(|net| net.prefix() == 24 && pool.contains(&net.ip().octets()[2]))
        };
        if let Some((key, kv)) = records().find(|(key, kv)| is_of(kv, ip) && fits(key)) {
            return (key, Some(kv.clone()));
        }
        let is_free = |key: &LeaseKey| !records().any(|(taken, _)| taken.overlaps(key));
        if let Some(key) = file.filter(|key| fits(key) && is_free(key)) {
            return (key, None);
        }
        let (min, max) = self.pool;
        let all = (min..=max).flat_map(|n| (1..=LAST_IPV6).map(move |n6| (n, n6)));
        let free: Vec<_> = all.map(|(n, n6)| self.key(n, n6)).filter(is_free).collect();
        let at = self.rng.random_range(0..free.len().max(1));
        (free.get(at).copied().unwrap_or(self.key(min, 1)), None)
    }
}

/// Until the record is gone.
async fn keep(world: &World, index: usize, ip: Ipv4Addr, key: LeaseKey) {
    let name = world.keys.lease(&key);
    loop {
        let renewal = world.see(|state| state.renewal);
        let mut pause = renewal.ttl.saturating_sub(renewal.margin);
        // It may be away for long, and renew as if nothing had happened.
        let away = world.see(|state| state.chance(10));
        if away {
            pause += world.see(|state| state.pick(2 * renewal.ttl));
            sleep(pause).await;
        } else {
            let gone = world.until(|state| {
                let kv = state.server.get(name.as_bytes());
                kv.is_none_or(|kv| !is_of(kv, ip))
            });
            let until = (now() + pause).into();
            if timeout_at(until, gone).await.is_ok() {
                return;
            }
        }
        while world.see(|state| state.away.is_some()) {
            sleep(Duration::from_mins(1)).await;
        }
        if away && world.see(|state| state.calm) {
            // From now on nobody disturbs others.
            return;
        }
        world.act(Actor::Stock(index), |state, now| {
            let reserved = state.server.get(name.as_bytes());
            let reserved = reserved.is_some_and(|kv| kv.lease == 0 && is_of(kv, ip));
            let lease = (!reserved).then(|| state.server.grant(now, renewal.ttl));
            let value = attrs(ip);
            let _ = state
                .server
                .put(now, name.as_bytes(), value.as_bytes(), lease);
            state.count("renewals of stock nodes");
        });
    }
}
