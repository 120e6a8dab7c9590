//! View of `beeline top`: page, order, filter and selected row, and the keys that change them. Pure.

use std::cmp::Ordering;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::report::{PortRow, RatedBackend};

/// The order of rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sort {
    /// By connections per second, then connections, descending.
    Rate,
    /// By open sockets, descending.
    Open,
    /// By refusals per second, then refusals, descending.
    Refused,
    /// By name.
    Name,
}

/// A page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Page {
    /// All service ports.
    Ports,
    /// The backends of the service port with this id.
    Backends(u32),
    /// Service ports that refused, by cause.
    Refusals,
    /// The keys.
    Help,
}

/// Effect of a key on the loop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Control {
    Continue,
    Quit,
}

/// Id of a row: of a service port or of a backend.
type RowId = u32;

/// The state of the screen.
pub(super) struct View {
    pub(super) page: Page,
    pub(super) sort: Sort,
    /// Text that names must contain, in any case.
    pub(super) filter: String,
    /// True if keys edit the filter.
    pub(super) edits_filter: bool,
    /// Pages to return to, each with its selected row and filter.
    back: Vec<(Page, Option<RowId>, String)>,
    /// Selected row. `None`: the first row, whichever it is.
    selected: Option<RowId>,
    /// Index of the selected row among the rows of the page.
    pub(super) at: usize,
    /// Index of the first row on the screen.
    pub(super) first: usize,
    /// Number of rows on the screen.
    height: usize,
}

impl View {
    pub(super) const fn new() -> Self {
        Self {
            page: Page::Ports,
            sort: Sort::Rate,
            filter: String::new(),
            edits_filter: false,
            back: Vec::new(),
            selected: None,
            at: 0,
            first: 0,
            height: 1,
        }
    }

    /// Lists the service ports of the page, in order.
    pub(super) fn ports<'a>(&self, all: &'a [PortRow]) -> Vec<&'a PortRow> {
        let refusals = self.page == Page::Refusals;
        let is_shown = |row: &&PortRow| {
            (!refusals || row.counts.refused > 0) && self.passes_filter(&[row.service.as_str(), row.port.as_str()])
        };
        let mut rows: Vec<_> = all.iter().filter(is_shown).collect();
        let sort = if refusals { Sort::Refused } else { self.sort };
        // Stable: rows that compare equal stay in the order of names.
        rows.sort_by(|a, b| sort.compare_ports(a, b));
        rows
    }

    /// Lists the backends of the page, in order.
    pub(super) fn backends<'a>(&self, all: &'a [RatedBackend]) -> Vec<&'a RatedBackend> {
        let mut rows: Vec<_> = all.iter().filter(|backend| self.passes_filter(&[backend.address().as_str()])).collect();
        rows.sort_by(|a, b| self.sort.compare_backends(a, b));
        rows
    }

    fn passes_filter(&self, names: &[&str]) -> bool {
        let wanted = self.filter.to_ascii_lowercase();
        wanted.is_empty() || names.join(":").to_ascii_lowercase().contains(&wanted)
    }

    /// Finds the selected row among the rows of the page, and scrolls so that it is on the screen.
    pub(super) fn follow_selection(&mut self, shown: &[RowId], height: usize) {
        let last = shown.len().saturating_sub(1);
        self.at = match self.selected {
            None => 0,
            // A removed row leaves the selection at its index.
            Some(id) => shown.iter().position(|other| *other == id).unwrap_or(self.at).min(last),
        };
        if self.selected.is_some() {
            self.selected = shown.get(self.at).copied();
        }
        self.height = height.max(1);
        self.first = self.first.clamp((self.at + 1).saturating_sub(self.height), self.at);
        // No empty lines below the last row while rows are above the first line.
        self.first = self.first.min(shown.len().saturating_sub(self.height));
    }

    /// Handles a key. `shown` are the rows of the page.
    pub(super) fn key(&mut self, key: KeyEvent, shown: &[RowId]) -> Control {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            // In raw mode the terminal sends no SIGINT for Ctrl-C.
            return if key.code == KeyCode::Char('c') { Control::Quit } else { Control::Continue };
        }
        if self.edits_filter {
            match key.code {
                KeyCode::Enter => self.edits_filter = false,
                KeyCode::Esc => (self.edits_filter, self.filter) = (false, String::new()),
                KeyCode::Backspace => drop(self.filter.pop()),
                KeyCode::Char(c) => self.filter.push(c),
                _ => {}
            }
            return Control::Continue;
        }
        match key.code {
            KeyCode::Char('q') => return Control::Quit,
            KeyCode::Char('h' | '?') if self.page != Page::Help => self.open(Page::Help),
            KeyCode::Esc if !self.filter.is_empty() => self.filter.clear(),
            KeyCode::Esc | KeyCode::Char('h' | '?') => self.go_back(),
            _ if self.page == Page::Help => {}
            KeyCode::Up | KeyCode::Char('k') => self.select(shown, self.at.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.select(shown, self.at + 1),
            KeyCode::PageUp => self.select(shown, self.at.saturating_sub(self.height)),
            KeyCode::PageDown => self.select(shown, self.at + self.height),
            KeyCode::End => self.select(shown, usize::MAX),
            KeyCode::Home => (self.selected, self.at, self.first) = (None, 0, 0),
            KeyCode::Enter | KeyCode::Char('b') => {
                if let (Page::Ports | Page::Refusals, Some(id)) = (self.page, shown.get(self.at)) {
                    self.open(Page::Backends(*id));
                }
            }
            KeyCode::Char('r') if self.page == Page::Refusals => self.go_back(),
            KeyCode::Char('r') => self.open(Page::Refusals),
            KeyCode::Char('o') => self.sort = self.sort.next(),
            KeyCode::Char('/') => self.edits_filter = true,
            _ => {}
        }
        Control::Continue
    }

    fn select(&mut self, shown: &[RowId], at: usize) {
        self.at = at.min(shown.len().saturating_sub(1));
        self.selected = shown.get(self.at).copied();
    }

    /// Opens a page, without a filter.
    fn open(&mut self, page: Page) {
        self.back.push((self.page, self.selected, std::mem::take(&mut self.filter)));
        (self.page, self.selected, self.at, self.first) = (page, None, 0, 0);
    }

    fn go_back(&mut self) {
        if let Some(before) = self.back.pop() {
            (self.page, self.selected, self.filter) = before;
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

    /// Compares backends; they have no refusals.
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
