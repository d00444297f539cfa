//! `overlay-agent monitor`: packets as the programs judge them, one line each.
//!
//! The programs that tell of packets are another flavour of the agent's. This process loads them, and the agent has
//! them run for as long as this process lives ([`crate::loan`]): without a listener nothing of it is in the kernel.

mod filter;
mod line;
mod sample;

use std::{
    io::{Write as _, stderr},
    net::IpAddr,
    num::NonZeroU64,
    os::unix::net::UnixStream,
    process::ExitCode,
    sync::Arc,
    time::{Instant, SystemTime},
};

use anyhow::{Context as _, anyhow, bail, ensure};
use overlay_common::outcome::Kind;
use tokio::{
    io::AsyncReadExt as _,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;

use self::{filter::Filter, line::Lines, sample::Sample};
use super::pinned::Pinned;
use crate::{
    datapath::{Loan, Message, PacketLog},
    lifecycle::privileges,
    loan,
    object::LOGGING_OBJECT,
};

/// More events are not even looked at: one takes a few microseconds.
const LOOKED_AT_PER_SECOND: u64 = 20_000;

const NOT_BUILT: &str = "this overlay-agent was built without the programs that tell of packets, which `cargo xtask \
                         build-ebpf --log` makes";

const NO_AGENT: &str = "no agent of this user runs in this network namespace, and only with one the programs can be \
                        listened to";

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub pinned: Pinned,
    /// Only packets that a program dropped
    #[arg(long)]
    pub drops: bool,
    /// Only packets that were left to the kernel
    #[arg(long)]
    pub declines: bool,
    /// Also packets that were fast, and what is not the pod network's; costs every packet much more
    #[arg(long, conflicts_with_all = ["drops", "declines"])]
    pub all: bool,
    /// Only packets from or to this pod
    #[arg(long, value_name = "ADDRESS")]
    pub pod: Option<IpAddr>,
    /// Only packets from or to the node with this public IP
    #[arg(long, value_name = "ADDRESS")]
    pub peer: Option<IpAddr>,
    /// Show at most this many packets in a second, and count the others
    #[arg(long, value_name = "COUNT", default_value = "100")]
    pub rate: NonZeroU64,
    /// End after so many packets
    #[arg(long, value_name = "COUNT")]
    pub count: Option<NonZeroU64>,
}

impl Args {
    /// What is shown; everything, if it is empty.
    fn kinds(&self) -> Vec<Kind> {
        let kinds = [(self.drops, Kind::Drop), (self.declines, Kind::Decline)];
        let wanted = kinds.into_iter().filter(|(is_wanted, _)| *is_wanted);
        wanted.map(|(_, kind)| kind).collect()
    }

    /// What the programs have to tell of.
    const fn level(&self) -> LevelFilter {
        if self.all {
            LevelFilter::TRACE
        } else if self.drops && !self.declines {
            LevelFilter::WARN
        } else {
            LevelFilter::DEBUG
        }
    }
}

pub async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let object = LOGGING_OBJECT.context(NOT_BUILT)?;
    let pins = args.pinned.pins();
    let filter = Filter::new(args.kinds(), args.pod, args.peer, &args.pinned.open()?)?;
    ensure!(pins.is_in_use()?, NO_AGENT);
    let done = CancellationToken::new();
    let events = Arc::new(Events::new(args, filter, done.clone()));
    let level = args.level();
    let mut loan = privileges::loading({
        let events = Arc::clone(&events);
        move || {
            Loan::load(
                &pins,
                object,
                level,
                Box::new(move |message| events.take(&message)),
            )
        }
    })?;
    let log = loan.take_log().context("the programs have no log")?;
    let stream = tokio::task::block_in_place(|| lend(&loan))?;
    let ended = listen(log, stream, done).await?;
    events.finish()?;
    ensure!(
        ended != Ended::Agent,
        "the agent has ended, or has taken its programs back"
    );
    Ok(ExitCode::SUCCESS)
}

fn lend(loan: &Loan) -> anyhow::Result<UnixStream> {
    let stream = loan::connect()?.context(NO_AGENT)?;
    // It is no pipe whose reader has gone.
    let answer = loan::lend(&stream, loan)
        .map_err(|error| anyhow!("cannot lend the agent programs: {error}"))?;
    if let Some(reason) = answer.refused {
        bail!("{reason}");
    }
    let problem = answer.problem.map(|problem| format!(" ({problem})"));
    let problem = problem.unwrap_or_default();
    let _ = writeln!(stderr(), "listening{problem}; end it with ^C");
    stream.set_nonblocking(true)?;
    Ok(stream)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// By a signal, or by itself.
    Here,
    Agent,
}

/// Reads what the programs say until that ends.
async fn listen(
    log: PacketLog,
    stream: UnixStream,
    done: CancellationToken,
) -> anyhow::Result<Ended> {
    let mut agent = tokio::net::UnixStream::from_std(stream)?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = CancellationToken::new();
    let _stop_reading = stop.clone().drop_guard();
    // In a task of its own: it does not return while packets come faster than it reads.
    let reading = tokio::spawn(log.forward(stop));
    let mut byte = [0];
    let ended = tokio::select! {
        () = done.cancelled() => Ended::Here,
        _ = interrupt.recv() => Ended::Here,
        _ = terminate.recv() => Ended::Here,
        _ = agent.read(&mut byte) => Ended::Agent,
        read = reading => {
            read??;
            Ended::Here
        }
    };
    Ok(ended)
}

/// Takes what the programs say, and prints what is asked for.
struct Events {
    filter: Filter,
    done: CancellationToken,
    state: std::sync::Mutex<State>,
}

struct State {
    looked_at: Sample,
    shown: Sample,
    /// How many more are to be shown.
    left: Option<u64>,
    lines: Lines,
}

impl Events {
    fn new(args: &Args, filter: Filter, done: CancellationToken) -> Self {
        Self {
            filter,
            done,
            state: std::sync::Mutex::new(State {
                looked_at: Sample::new(LOOKED_AT_PER_SECOND),
                shown: Sample::new(args.rate.get()),
                left: args.count.map(NonZeroU64::get),
                lines: Lines::new(args.pinned.output),
            }),
        }
    }

    fn take(&self, message: &Message<'_>) {
        let now = Instant::now();
        let Ok(mut state) = self.state.lock() else {
            return;
        };
        let state = &mut *state;
        if self.done.is_cancelled() || !state.looked_at.admits(now) {
            return;
        }
        let Some(event) = message.event().filter(|event| self.filter.wants(event)) else {
            return;
        };
        if !state.shown.admits(now) {
            return;
        }
        // A reader that has gone away ends it.
        if state.report_left_out(false).is_err()
            || state.lines.event(&event, SystemTime::now()).is_err()
        {
            self.done.cancel();
        }
        if let Some(left) = &mut state.left {
            *left -= 1;
            if *left == 0 {
                self.done.cancel();
            }
        }
    }

    fn finish(&self) -> std::io::Result<()> {
        match self.state.lock() {
            Ok(mut state) => state.report_left_out(true),
            Err(_) => Ok(()),
        }
    }
}

impl State {
    /// Tells how many were left out in the seconds that are over; at the end, in the one that is not, too.
    fn report_left_out(&mut self, is_end: bool) -> std::io::Result<()> {
        let shown = self.shown.left_out(is_end);
        let looked_at = self.looked_at.left_out(is_end);
        if shown + looked_at == 0 {
            return Ok(());
        }
        self.lines.left_out(shown, looked_at)
    }
}
