//! A node: lives of the project's own agent, one after the other, as far as leases go.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use ipnetwork::{Ipv4Network, Ipv6Network};
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        Etcd,
        keys::Keys,
        kv::Kv,
        machine::{Machine, Time},
        store::EtcdStore,
    },
    network::Network,
    world::{LAST_IPV6, World, WorldState},
};
use crate::{
    config::network::Pool,
    membership::{Allocation, Wish, await_config, await_known},
    model::{LeaseAttrs, OwnState},
};

/// The agent looks at the clocks this often.
const BEAT: Duration = Duration::from_secs(1);

/// `10.3.1.0 to 10.3.9.0, dual`
fn parse(text: &str) -> Result<Allocation, String> {
    let mut numbers = text.split(' ').map(str::parse::<u8>);
    let mut number = || numbers.next().and_then(Result::ok).ok_or("not a config");
    let (min, max, dual) = (number()?, number()?, number()? == 1);
    Ok(Allocation {
        ipv4: Some(Pool {
            network: "10.3.0.0/16".parse().unwrap(),
            subnet_min: [10, 3, min, 0].into(),
            subnet_max: [10, 3, max, 0].into(),
            subnet_len: 24,
        }),
        ipv6: dual.then(|| Pool {
            network: "fd00:3::/48".parse().unwrap(),
            subnet_min: [0xfd00, 3, 0, 1, 0, 0, 0, 0].into(),
            subnet_max: [0xfd00, 3, 0, LAST_IPV6.into(), 0, 0, 0, 0].into(),
            subnet_len: 64,
        }),
    })
}

impl WorldState {
    /// The network config of now.
    pub fn config(&self) -> String {
        let (min, max) = self.pool;
        format!("{min} {max} {}", u8::from(self.dual))
    }

    fn wish(&mut self, keys: &Keys, node: usize, allocation: Allocation) -> Wish {
        let seat = &mut self.seats[node];
        seat.wanted = seat.attrs();
        let shows = |kv: &Kv| {
            let attrs = LeaseAttrs::decode(&kv.value);
            attrs.is_ok_and(|attrs| attrs.public_ip == seat.ip)
        };
        let stored = seat
            .held
            .and_then(|key| self.server.get(keys.lease(&key).as_bytes()));
        if seat.file != seat.held && !stored.is_some_and(shows) {
            seat.reasons.insert("nothing recalls its subnet");
        }
        let previous = seat.file.map(|key| key.subnets());
        let previous4 = previous.and_then(|previous| previous.ipv4);
        let previous6 = previous.and_then(|previous| previous.ipv6);
        Wish {
            attrs: seat.wanted.clone(),
            allocation,
            // The file holds the gateway's address.
            previous: previous4
                .and_then(|net| Ipv4Network::new((u32::from(net.ip()) + 1).into(), 24).ok()),
            previous6: previous6
                .and_then(|net| Ipv6Network::new((u128::from(net.ip()) + 1).into(), 64).ok()),
        }
    }
}

/// Runs the agent, again whenever it has ended, as a service manager does.
pub async fn run(world: Arc<World>, node: usize) {
    loop {
        world
            .until(|state| !state.seats[node].down && state.seats[node].asleep.is_none())
            .await;
        let life = CancellationToken::new();
        world.see(|state| {
            state.note(|| format!("n{node} starts"));
            state.disturbed(node);
            let seat = &mut state.seats[node];
            seat.life = life.clone();
            seat.untold = Duration::ZERO;
            seat.slept_before = seat.slept;
        });
        // A killed agent does nothing more.
        life.run_until_cancelled(live(&world, node, &life)).await;
        life.cancel();
        world.see(|state| {
            state.note(|| format!("n{node}'s agent has ended"));
            let seat = &mut state.seats[node];
            seat.member = None;
            seat.dies_in = None;
        });
        let pause = world.see(|state| state.pick(Duration::from_secs(5)));
        sleep(pause).await;
    }
}

async fn live(world: &Arc<World>, node: usize, life: &CancellationToken) {
    let network = Network {
        world: Arc::clone(world),
        node,
    };
    let renewal = world.see(|state| state.renewal);
    let etcd = Etcd::new(EtcdStore::on(network, world.keys.clone()), renewal);
    let found = await_config(&etcd, life, parse, |_| ()).await;
    let Some((allocation, config)) = found else {
        return;
    };
    if await_known(&etcd, life, |_| ()).await.is_none() {
        return;
    }
    // The device is made.
    let pause = world.see(|state| state.pick(Duration::from_secs(1)));
    sleep(pause).await;
    let (wish, seed) = world.see(|state| {
        let seed = rand::RngCore::next_u64(&mut state.rng);
        (state.wish(&world.keys, node, allocation), seed)
    });
    let machine = Machine {
        rng: StdRng::seed_from_u64(seed),
        time: Box::new(Clock {
            world: Arc::clone(world),
            node,
        }),
    };
    let joined = etcd.join_from(machine, wish, config, life.clone()).await;
    let member = match joined {
        Ok(Some(member)) => Arc::new(member),
        Ok(None) => return,
        Err(error) => {
            return world.see(|state| {
                state.count("starts that ended without a lease");
                state.note(|| format!("n{node} gives up: {error}"));
            });
        }
    };
    let mut view = member.view.clone();
    let key = view.borrow_and_update().own.key;
    world.see(|state| {
        state.count("leases acquired");
        state.note(|| format!("n{node} has acquired {key}"));
        let seat = &mut state.seats[node];
        let attrs = seat.attrs();
        if attrs != seat.wanted {
            // The address has changed meanwhile.
            seat.wanted = attrs.clone();
            member.publish(attrs);
        }
        seat.member = Some(member);
        state.judge_lease(&world.keys, node, key);
        state.check(&world.keys, super::world::now());
    });
    tokio::join!(save(world, node), tell_of_sleep(world, node), async {
        while view.changed().await.is_ok() {
            let own = view.borrow_and_update().own.clone();
            world.see(|state| {
                state.note(|| format!("n{node}'s view: {} {:?}", own.key, own.state));
                if matches!(own.state, OwnState::Taken { .. }) {
                    state.count("views of a subnet that another node has taken");
                    state.judge_taken(node);
                }
                state.check(&world.keys, super::world::now());
            });
        }
    });
}

struct Clock {
    world: Arc<World>,
    node: usize,
}

impl Time for Clock {
    fn now(&self) -> Instant {
        self.world.see(|state| state.seats[self.node].clock())
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        let (world, node) = (Arc::clone(&self.world), self.node);
        Box::pin(async move {
            sleep(time).await;
            world
                .until(|state| state.seats[node].asleep.is_none())
                .await;
        })
    }
}

/// The subnet file is written at the end of the start.
async fn save(world: &World, node: usize) {
    let pause = world.see(|state| state.pick(Duration::from_millis(800)));
    sleep(pause).await;
    world.see(|state| state.seats[node].file = state.seats[node].held);
}

async fn tell_of_sleep(world: &World, node: usize) {
    loop {
        world
            .until(|state| state.seats[node].untold > Duration::ZERO)
            .await;
        let pause = world.see(|state| state.pick(BEAT));
        sleep(pause).await;
        world.see(|state| {
            let seat = &mut state.seats[node];
            let untold = std::mem::take(&mut seat.untold);
            if let Some(member) = &seat.member {
                member.slept(untold);
            }
        });
    }
}
