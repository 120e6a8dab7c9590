//! What is looked at: page, order, filter and the chosen row, and what keys change of it. Pure.

use std::cmp::Ordering;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::report::{PortRow, RatedBackend};

/// The order of rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sort {
    /// Most connections a second first, then most connections.
    Rate,
    /// Most open sockets first.
    Open,
    /// Most refusals a second first, then most refusals.
    Refused,
    /// By name.
    Name,
}

/// A page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Page {
    /// All service ports.
    Ports,
    /// The backends of one, by its id.
    Backends(u32),
    /// Service ports that refused, by cause.
    Refusals,
    /// The keys.
    Help,
}

/// Whether to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Then {
    Stay,
    Quit,
}

/// A row that can be chosen: its id, as long as rows keep their ids.
type Id = u32;

/// The state of the screen.
pub(super) struct View {
    pub(super) page: Page,
    pub(super) sort: Sort,
    /// Shown are rows that have this in their name, in whatever case.
    pub(super) filter: String,
    /// Whether keys go to the filter.
    pub(super) typing: bool,
    /// Where Esc leads from the page, and what was chosen and filtered there.
    back: Vec<(Page, Option<Id>, String)>,
    /// The row that is followed; none: whatever is first.
    chosen: Option<Id>,
    /// Where it is among the rows that are shown.
    pub(super) at: usize,
    /// The first row on the screen.
    pub(super) first: usize,
    /// How many fit on it.
    height: usize,
}

impl View {
    pub(super) const fn new() -> Self {
        Self {
            page: Page::Ports,
            sort: Sort::Rate,
            filter: String::new(),
            typing: false,
            back: Vec::new(),
            chosen: None,
            at: 0,
            first: 0,
            height: 1,
        }
    }

    /// The service ports of the page, in order.
    pub(super) fn ports<'a>(&self, all: &'a [PortRow]) -> Vec<&'a PortRow> {
        let refusals = self.page == Page::Refusals;
        let is_shown = |row: &&PortRow| {
            (!refusals || row.counts.refused > 0) && self.passes(&[row.service.as_str(), row.port.as_str()])
        };
        let mut rows: Vec<_> = all.iter().filter(is_shown).collect();
        let sort = if refusals { Sort::Refused } else { self.sort };
        // They come by name, and those that are equal stay so.
        rows.sort_by(|a, b| sort.compare_ports(a, b));
        rows
    }

    /// The backends of the page, in order.
    pub(super) fn backends<'a>(&self, all: &'a [RatedBackend]) -> Vec<&'a RatedBackend> {
        let mut rows: Vec<_> = all.iter().filter(|backend| self.passes(&[backend.target().as_str()])).collect();
        rows.sort_by(|a, b| self.sort.compare_backends(a, b));
        rows
    }

    fn passes(&self, names: &[&str]) -> bool {
        let wanted = self.filter.to_ascii_lowercase();
        wanted.is_empty() || names.join(":").to_ascii_lowercase().contains(&wanted)
    }

    /// Finds the chosen row among those that are shown now, and moves the screen so that it is on it.
    pub(super) fn settle(&mut self, shown: &[Id], height: usize) {
        let last = shown.len().saturating_sub(1);
        self.at = match self.chosen {
            // Who has chosen nothing looks at the top.
            None => 0,
            // A row that has gone leaves the choice at its place.
            Some(id) => shown.iter().position(|other| *other == id).unwrap_or(self.at).min(last),
        };
        if self.chosen.is_some() {
            self.chosen = shown.get(self.at).copied();
        }
        self.height = height.max(1);
        self.first = self.first.clamp((self.at + 1).saturating_sub(self.height), self.at);
        // No empty lines below the last row while there are rows above the first.
        self.first = self.first.min(shown.len().saturating_sub(self.height));
    }

    /// Does what a key says. `shown` are the rows of the page.
    pub(super) fn key(&mut self, key: KeyEvent, shown: &[Id]) -> Then {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            // The terminal makes no signal of it while it is ours.
            return if key.code == KeyCode::Char('c') { Then::Quit } else { Then::Stay };
        }
        if self.typing {
            match key.code {
                KeyCode::Enter => self.typing = false,
                KeyCode::Esc => (self.typing, self.filter) = (false, String::new()),
                KeyCode::Backspace => drop(self.filter.pop()),
                KeyCode::Char(c) => self.filter.push(c),
                _ => {}
            }
            return Then::Stay;
        }
        match key.code {
            KeyCode::Char('q') => return Then::Quit,
            KeyCode::Char('h' | '?') if self.page != Page::Help => self.open(Page::Help),
            KeyCode::Esc if !self.filter.is_empty() => self.filter.clear(),
            KeyCode::Esc | KeyCode::Char('h' | '?') => self.go_back(),
            _ if self.page == Page::Help => {}
            KeyCode::Up | KeyCode::Char('k') => self.choose(shown, self.at.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.choose(shown, self.at + 1),
            KeyCode::PageUp => self.choose(shown, self.at.saturating_sub(self.height)),
            KeyCode::PageDown => self.choose(shown, self.at + self.height),
            KeyCode::End => self.choose(shown, usize::MAX),
            KeyCode::Home => (self.chosen, self.at, self.first) = (None, 0, 0),
            KeyCode::Enter | KeyCode::Char('b') => {
                if let (Page::Ports | Page::Refusals, Some(id)) = (self.page, shown.get(self.at)) {
                    self.open(Page::Backends(*id));
                }
            }
            KeyCode::Char('r') if self.page == Page::Refusals => self.go_back(),
            KeyCode::Char('r') => self.open(Page::Refusals),
            KeyCode::Char('o') => self.sort = self.sort.next(),
            KeyCode::Char('/') => self.typing = true,
            _ => {}
        }
        Then::Stay
    }

    fn choose(&mut self, shown: &[Id], at: usize) {
        self.at = at.min(shown.len().saturating_sub(1));
        self.chosen = shown.get(self.at).copied();
    }

    /// A filter is for one page.
    fn open(&mut self, page: Page) {
        self.back.push((self.page, self.chosen, std::mem::take(&mut self.filter)));
        (self.page, self.chosen, self.at, self.first) = (page, None, 0, 0);
    }

    fn go_back(&mut self) {
        if let Some(before) = self.back.pop() {
            (self.page, self.chosen, self.filter) = before;
        }
    }
}

impl Sort {
    const fn next(self) -> Self {
        match self {
            Self::Rate => Self::Open,
            Self::Open => Self::Refused,
            Self::Refused => Self::Name,
            Self::Name => Self::Rate,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Open => "open",
            Self::Refused => "refused",
            Self::Name => "name",
        }
    }

    pub(super) fn compare_ports(self, a: &PortRow, b: &PortRow) -> Ordering {
        let first = match self {
            Self::Rate => b.rate().total_cmp(&a.rate()),
            Self::Open => b.counts.open.cmp(&a.counts.open),
            Self::Refused => {
                b.refused_rate().total_cmp(&a.refused_rate()).then(b.counts.refused.cmp(&a.counts.refused))
            }
            Self::Name => return Ordering::Equal,
        };
        first.then(b.counts.connections.cmp(&a.counts.connections))
    }

    /// Backends refuse nothing.
    fn compare_backends(self, a: &RatedBackend, b: &RatedBackend) -> Ordering {
        let rate = |backend: &RatedBackend| backend.rate.unwrap_or(0.0);
        let first = match self {
            Self::Rate => rate(b).total_cmp(&rate(a)),
            Self::Open => b.row.open.cmp(&a.row.open),
            Self::Refused | Self::Name => return Ordering::Equal,
        };
        first.then(b.row.connections.cmp(&a.row.connections))
    }
}
