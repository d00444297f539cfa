//! `overlay-agent top`: this node at a glance, in a terminal.

mod draw;
mod rows;

use std::{
    io::{IsTerminal as _, stdin, stdout},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use super::glance::{Glance, Glancer};
use crate::datapath::{DEFAULT_PIN_DIR, PinDir};

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// Lines that a page key moves.
const PAGE: usize = 10;

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Directory on a BPF file system where the agent pins its maps and links
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_DIR)]
    pub pin_dir: PathBuf,
}

/// What is shown below the head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Tab {
    #[default]
    Peers,
    Flows,
    Packets,
    Events,
}

impl Tab {
    const ALL: [Self; 4] = [Self::Peers, Self::Flows, Self::Packets, Self::Events];

    const fn title(self) -> &'static str {
        match self {
            Self::Peers => "Peers",
            Self::Flows => "Flows",
            Self::Packets => "Dropped and declined",
            Self::Events => "Repairs and flushes",
        }
    }

    /// So many places further on, in a circle.
    const fn after(self, steps: usize) -> Self {
        Self::ALL[(self as usize + steps) % Self::ALL.len()]
    }
}

/// What is on the screen.
#[derive(Debug, Default)]
struct View {
    glance: Option<Glance>,
    tab: Tab,
    /// The first row that is shown.
    from: usize,
}

impl View {
    /// Returns whether the command is to end.
    fn press(&mut self, key: KeyEvent) -> bool {
        let last = self.rows().len().saturating_sub(1);
        let interrupted = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Char('c') if interrupted => return true,
            KeyCode::Tab | KeyCode::Right => self.turn(1),
            KeyCode::BackTab | KeyCode::Left => self.turn(Tab::ALL.len() - 1),
            KeyCode::Down => self.from += 1,
            KeyCode::Up => self.from = self.from.saturating_sub(1),
            KeyCode::PageDown => self.from += PAGE,
            KeyCode::PageUp => self.from = self.from.saturating_sub(PAGE),
            KeyCode::Home => self.from = 0,
            KeyCode::End => self.from = last,
            _ => {}
        }
        self.from = self.from.min(last);
        false
    }

    fn turn(&mut self, steps: usize) {
        self.tab = self.tab.after(steps);
        self.from = 0;
    }

    fn take(&mut self, glance: Glance) {
        self.glance = Some(glance);
        self.from = self.from.min(self.rows().len().saturating_sub(1));
    }
}

/// Shows the node until a key ends it.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(
        stdin().is_terminal() && stdout().is_terminal(),
        "top takes a terminal; `overlay-agent status`, `peers` and `stats` print the same things"
    );
    let mut terminal = ratatui::try_init().context("the terminal cannot be used")?;
    let shown = show(&mut terminal, PinDir::new(&args.pin_dir)).await;
    ratatui::restore();
    shown
}

async fn show(terminal: &mut DefaultTerminal, pins: PinDir) -> anyhow::Result<()> {
    let mut keys = keys();
    let mut glances = glances(pins);
    let mut view = View::default();
    loop {
        terminal.draw(|frame| draw::draw(&view, frame))?;
        tokio::select! {
            event = keys.recv() => match event.context("the terminal is gone")? {
                Event::Key(key) if key.kind == KeyEventKind::Press && view.press(key) => {
                    return Ok(());
                }
                // Among them a change of the size.
                _ => {}
            },
            glance = glances.recv() => view.take(glance.context("nobody looks at the node")?),
        }
    }
}

/// What is typed. The thread that waits for it ends with the process.
fn keys() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The node, again and again.
fn glances(pins: PinDir) -> mpsc::Receiver<Glance> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut glancer = Glancer::new(pins);
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let glance = glancer.look().await;
            if sender.send(glance).await.is_err() {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::cli::glance::sample;

    fn screen(view: &View, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(100, height)).unwrap();
        terminal.draw(|frame| draw::draw(view, frame)).unwrap();
        terminal.backend().to_string()
    }

    fn pressed(view: &mut View, keys: &[KeyCode]) {
        for key in keys {
            assert!(!view.press(KeyEvent::from(*key)), "{key:?}");
        }
    }

    #[test]
    fn the_head_and_the_peers_are_shown_first() {
        let mut view = View::default();
        assert!(screen(&view, 20).contains("looking"));
        view.take(sample::glance());
        insta::assert_snapshot!(screen(&view, 16));
    }

    #[test]
    fn tab_goes_through_all_there_is_and_comes_back() {
        let mut view = View::default();
        view.take(sample::glance());
        let first = screen(&view, 12);
        let mut shown = Vec::new();
        for _ in 1..Tab::ALL.len() {
            pressed(&mut view, &[KeyCode::Tab]);
            shown.push(screen(&view, 12));
        }
        insta::assert_snapshot!(shown.join("\n"));
        pressed(&mut view, &[KeyCode::Right]);
        assert_eq!(screen(&view, 12), first);
        pressed(&mut view, &[KeyCode::Left]);
        assert_eq!(screen(&view, 12), shown[2]);
    }

    #[test]
    fn arrows_move_within_the_rows_and_q_ends() {
        let mut view = View::default();
        view.take(sample::glance());
        pressed(&mut view, &[KeyCode::Up, KeyCode::Down]);
        assert_eq!(view.from, 1);
        pressed(&mut view, &[KeyCode::Down, KeyCode::PageDown, KeyCode::End]);
        assert_eq!(view.from, 1);
        pressed(&mut view, &[KeyCode::Home]);
        assert_eq!(view.from, 0);
        assert!(view.press(KeyEvent::from(KeyCode::Char('q'))));
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert!(view.press(interrupt));
    }

    #[test]
    fn a_small_terminal_is_no_reason_to_panic() {
        let mut view = View::default();
        view.take(sample::glance());
        for (width, height) in [(1, 1), (10, 3), (30, 5), (300, 100)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| draw::draw(&view, frame)).unwrap();
        }
    }
}
