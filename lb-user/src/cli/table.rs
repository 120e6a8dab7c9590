//! Tables of text, in the form of kubectl's. Wide rows are neither cut nor wrapped.

use std::fmt::Write as _;

/// A column of a table.
#[derive(Clone, Copy)]
pub(super) struct Column {
    head: &'static str,
    align: Align,
}

#[derive(Clone, Copy)]
enum Align {
    Left,
    Right,
}

impl Column {
    /// Returns a column of words.
    pub(super) const fn left(head: &'static str) -> Self {
        Self { head, align: Align::Left }
    }

    /// Returns a column of numbers.
    pub(super) const fn right(head: &'static str) -> Self {
        Self { head, align: Align::Right }
    }

    pub(super) const fn head(&self) -> &'static str {
        self.head
    }

    /// True if the cells are aligned right.
    pub(super) const fn is_right(&self) -> bool {
        matches!(self.align, Align::Right)
    }
}

/// Formats a head and a line for each row, with two spaces between the columns. All text must be ASCII: widths are
/// counted in bytes.
pub(super) fn text(columns: &[Column], rows: &[Vec<String>]) -> String {
    let width = |(at, column): (usize, &Column)| {
        let cells = rows.iter().filter_map(|row| row.get(at)).map(String::len);
        cells.max().unwrap_or(0).max(column.head.len())
    };
    let widths: Vec<usize> = columns.iter().enumerate().map(width).collect();
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let start = text.len();
        for ((cell, width), column) in cells.zip(&widths).zip(columns) {
            let between = if text.len() == start { "" } else { "  " };
            let _infallible = match column.align {
                Align::Left => write!(text, "{between}{cell:<width$}"),
                Align::Right => write!(text, "{between}{cell:>width$}"),
            };
        }
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
    };
    line(&mut columns.iter().map(|column| column.head));
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_aligned_left_and_numbers_right() {
        let columns = [Column::left("NAME"), Column::right("OPEN"), Column::left("X")];
        let rows =
            [vec!["a".to_owned(), "12345".to_owned(), String::new()], vec!["long-name".into(), "1".into(), "y".into()]];
        expect_test::expect![[r"
            NAME        OPEN  X
            a          12345
            long-name      1  y
        "]]
        .assert_eq(&text(&columns, &rows));
        assert_eq!(text(&columns, &[]), "NAME  OPEN  X\n");
    }
}
