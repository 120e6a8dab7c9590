//! Screen of `beeline top`: a report and a view become cells of a terminal.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Style, Stylize as _},
    text::Line,
    widgets::{Cell, Paragraph, Row, Table},
};

use super::{
    Column, PORTS,
    report::{RatedBackend, Report, format_rate},
    view::{Page, View},
};
use lb_core::text::number;

const REFUSALS: [Column; 6] = [
    Column::left("SERVICE"),
    Column::left("PORT"),
    Column::right("NO ENDPOINTS/s"),
    Column::right("NO ENDPOINTS"),
    Column::right("NO LOCAL/s"),
    Column::right("NO LOCAL"),
];

const BACKENDS: [Column; 6] = [
    Column::left("BACKEND"),
    Column::left("WHERE"),
    Column::right("WEIGHT"),
    Column::right("CONN/s"),
    Column::right("CONNECTIONS"),
    Column::right("OPEN"),
];

const KEYS: &str = "  up, down, k, j     select a row; PgUp, PgDn, End; Home returns to the first row
  Enter, b           backends of the service port
  r                  refusals by cause, of all service ports
  o                  next order: rate, open, refused, name
  /                  show only names that contain a text; Enter keeps the filter, Esc drops it
  Esc                back
  h                  this help
  q                  quit

  CONN/s, CONNECTIONS   backends given to sockets
  OPEN                  sockets that hold a backend now
  REFUSED               connects and datagrams without a backend
  MOVED                 UDP sockets that moved to another backend
  KILLED                sockets that the agent ended

All counts are of this node. The kernel counts connections, with or without a running agent.";

/// Draws a frame. `backends` are the backends of the page, if it lists backends.
pub(super) fn draw(frame: &mut Frame<'_>, report: &Report, backends: &[RatedBackend], view: &mut View) {
    let [head, title, body, foot] =
        Layout::vertical([Constraint::Length(2), Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)])
            .areas(frame.area());
    let agent = agent(report);
    let agent = if report.agent.is_some() { Line::from(agent).bold() } else { Line::from(agent).bold().yellow() };
    frame.render_widget(Paragraph::new(vec![agent, Line::from(totals(report))]), head);
    frame.render_widget(Line::from(heading(report, view)).dim(), title);
    match view.page {
        Page::Help => frame.render_widget(Paragraph::new(KEYS), body),
        Page::Ports => {
            let rows = view.ports(&report.ports);
            view.follow_selection(&rows.iter().map(|row| row.id).collect::<Vec<_>>(), lines(body));
            draw_rows(frame, body, &PORTS, view, rows.len(), |at| rows[at].cells());
        }
        Page::Refusals => {
            let rows = view.ports(&report.ports);
            view.follow_selection(&rows.iter().map(|row| row.id).collect::<Vec<_>>(), lines(body));
            draw_rows(frame, body, &REFUSALS, view, rows.len(), |at| rows[at].refusal_cells());
        }
        Page::Backends(_) => {
            let rows = view.backends(backends);
            view.follow_selection(&rows.iter().map(|backend| backend.row.id).collect::<Vec<_>>(), lines(body));
            draw_rows(frame, body, &BACKENDS, view, rows.len(), |at| rows[at].cells());
        }
    }
    frame.render_widget(footer(view), foot);
}

/// Lists the ids of the page's rows, in order.
pub(super) fn ids(report: &Report, backends: &[RatedBackend], view: &View) -> Vec<u32> {
    match view.page {
        Page::Help => Vec::new(),
        Page::Ports | Page::Refusals => view.ports(&report.ports).iter().map(|row| row.id).collect(),
        Page::Backends(_) => view.backends(backends).iter().map(|backend| backend.row.id).collect(),
    }
}

/// Returns the number of lines for rows, below the head of the table.
fn lines(body: Rect) -> usize {
    usize::from(body.height.saturating_sub(1))
}

/// Draws the rows on the screen; rows outside of it cost nothing.
fn draw_rows<const N: usize>(
    frame: &mut Frame<'_>,
    body: Rect,
    columns: &[Column; N],
    view: &View,
    count: usize,
    cells: impl Fn(usize) -> [String; N],
) {
    if count == 0 {
        let why = if view.filter.is_empty() { "none" } else { "no name contains the filter; Esc drops it" };
        return frame.render_widget(Paragraph::new(why).dim(), body);
    }
    let on_screen: Vec<(usize, [String; N])> =
        (view.first..count).take(lines(body).max(1)).map(|at| (at, cells(at))).collect();
    let width = |column: usize| {
        let longest = on_screen.iter().map(|(_, cells)| cells[column].len()).max().unwrap_or(0);
        u16::try_from(longest.max(columns[column].head().len())).unwrap_or(u16::MAX)
    };
    let line = |cells: [String; N]| {
        Row::new(cells.into_iter().zip(columns).map(|(cell, column)| {
            let line = Line::from(cell);
            Cell::from(if column.is_right() { line.right_aligned() } else { line })
        }))
    };
    let head = line(columns.map(|column| column.head().to_owned())).style(Style::new().bold());
    let widths: Vec<Constraint> = (0..N).map(|column| Constraint::Length(width(column))).collect();
    let rows = on_screen.into_iter().map(|(at, cells)| {
        let row = line(cells);
        if at == view.at { row.reversed() } else { row }
    });
    frame.render_widget(Table::new(rows, widths).header(head).column_spacing(2), body);
}

/// Returns the line about the agent.
pub(super) fn agent(report: &Report) -> String {
    match report.agent {
        Some(pid) => format!("beeline: the agent runs, pid {pid}"),
        None => "beeline: no agent runs; the kernel translates from the maps as they are".to_owned(),
    }
}

/// Returns the line with the totals of the node.
pub(super) fn totals(report: &Report) -> String {
    let rates = report.rates;
    format!(
        "{}, {}, {}, {}; {} conn/s, {} refused/s",
        number(report.services, "Service"),
        number(report.ports.len(), "service port"),
        number(report.backends as usize, "backend"),
        number(usize::try_from(report.open).unwrap_or(usize::MAX), "open socket"),
        format_rate(rates.map(|rates| rates.connections_per_second)),
        format_rate(rates.map(|rates| rates.refused_per_second)),
    )
}

fn heading(report: &Report, view: &View) -> String {
    match view.page {
        Page::Help => "Keys and columns".to_owned(),
        Page::Ports => format!("Service ports by {}", view.sort.name()),
        Page::Refusals => "Refusals by cause".to_owned(),
        Page::Backends(id) => {
            let row = report.ports.iter().find(|row| row.id == id);
            let port =
                row.map_or_else(|| "a removed service port".to_owned(), |row| format!("{} {}", row.service, row.port));
            format!("Backends of {port} by {}", view.sort.name())
        }
    }
}

fn footer(view: &View) -> Line<'static> {
    if view.edits_filter {
        return Line::from(format!("/{}_", view.filter));
    }
    let keys = match view.page {
        Page::Help => "Esc back  q quit",
        Page::Ports => "q quit  Enter backends  r refusals  o order  / filter  h help",
        Page::Refusals => "q quit  Enter backends  / filter  Esc back  h help",
        Page::Backends(_) => "q quit  o order  / filter  Esc back  h help",
    };
    if view.filter.is_empty() { Line::from(keys).dim() } else { Line::from(format!("/{}  {keys}", view.filter)) }
}
