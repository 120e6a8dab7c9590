//! The loop of `beeline top`: samples, keys and signals in, frames out.

use std::{io, thread, time::Duration};

use anyhow::{Context as _, Result};
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyEventKind},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::MissedTickBehavior,
};

use super::{
    draw,
    report::{self, RatedBackend, Report},
    sample::{Reader, Sample},
    view::{Control, Page, View},
};

/// Restores the terminal on drop, after errors too. After a panic, ratatui's hook restores it before the message.
struct RestoreTerminal;

impl Drop for RestoreTerminal {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

pub(super) fn run(mut reader: Reader, delay: Duration) -> Result<()> {
    // Report errors before the screen changes.
    let first = reader.read()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let restore = RestoreTerminal;
    let mut terminal = ratatui::try_init().context("taking the terminal")?;
    let result = runtime.block_on(watch(&mut terminal, delay, Screen::new(reader, first)));
    drop(restore);
    result
}

async fn watch(terminal: &mut DefaultTerminal, delay: Duration, mut screen: Screen) -> Result<()> {
    let signal = |kind| signal(kind).context("waiting for signals");
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut events = events();
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + delay, delay);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        terminal.draw(|frame| draw::draw(frame, &screen.report, &screen.backends, &mut screen.view))?;
        tokio::select! {
            _ = ticks.tick() => screen.sample()?,
            event = events.recv() => {
                let event = event.context("the terminal was closed")?.context("reading keys")?;
                if screen.event(&event)? == Control::Quit {
                    return Ok(());
                }
            }
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
        }
    }
}

/// Starts a thread that reads keys and changes of the size until the process ends.
fn events() -> mpsc::Receiver<io::Result<Event>> {
    let (sender, events) = mpsc::channel(16);
    thread::spawn(move || {
        loop {
            let event = event::read();
            let failed = event.is_err();
            if sender.blocking_send(event).is_err() || failed {
                return;
            }
        }
    });
    events
}

/// State of the screen, and its samples.
struct Screen {
    reader: Reader,
    before: Option<Sample>,
    now: Sample,
    report: Report,
    backends: Vec<RatedBackend>,
    view: View,
}

impl Screen {
    fn new(reader: Reader, now: Sample) -> Self {
        let report = report::report(None, &now);
        Self { reader, before: None, now, report, backends: Vec::new(), view: View::new() }
    }

    /// Reads the next sample.
    fn sample(&mut self) -> Result<()> {
        self.before = Some(std::mem::replace(&mut self.now, self.reader.read()?));
        self.report = report::report(self.before.as_ref(), &self.now);
        self.update_backends()
    }

    fn event(&mut self, event: &Event) -> Result<Control> {
        let Event::Key(key) = event else {
            // The next frame has the new size.
            return Ok(Control::Continue);
        };
        if key.kind == KeyEventKind::Release {
            return Ok(Control::Continue);
        }
        let (page, shown) = (self.view.page, draw::ids(&self.report, &self.backends, &self.view));
        let control = self.view.key(*key, &shown);
        if self.view.page != page {
            self.update_backends()?;
        }
        Ok(control)
    }

    fn update_backends(&mut self) -> Result<()> {
        if let Page::Backends(id) = self.view.page {
            let slots = self.reader.slots(id)?;
            self.backends = report::backends(self.before.as_ref(), &self.now, &slots, id);
        }
        Ok(())
    }
}
