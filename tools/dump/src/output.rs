//! What every verb hands over, and how it is printed: aligned columns for people, JSON for programs.

use crate::cli::Format;
use serde::Serialize;
use std::io::{self, Write};

/// A table for people.
pub struct Table {
    title: Option<&'static str>,
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
    headless: bool,
}

struct Column {
    name: &'static str,
    align: Align,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Align {
    Left,
    Right,
}

impl Table {
    /// Column names; one that ends in `>` is aligned to the right.
    pub fn new(columns: &[&'static str]) -> Table {
        let column = |name: &&'static str| match name.strip_suffix('>') {
            Some(name) => Column { name, align: Align::Right },
            None => Column { name, align: Align::Left },
        };
        let columns = columns.iter().map(column).collect();
        Table { title: None, columns, rows: Vec::new(), headless: false }
    }

    /// Two columns without a head: names and values.
    pub fn pairs() -> Table {
        Table { headless: true, ..Table::new(&["name", "value"]) }
    }

    pub fn titled(mut self, title: &'static str) -> Table {
        self.title = Some(title);
        self
    }

    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub fn pair(&mut self, name: &str, value: impl ToString) {
        self.rows.push(vec![name.to_string(), value.to_string()]);
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        if let Some(title) = self.title {
            writeln!(out, "{title}")?;
        }
        let head: Vec<String> = self.columns.iter().map(|c| c.name.to_string()).collect();
        let head = (!self.headless).then_some(&head);
        let mut widths = vec![0; self.columns.len()];
        for row in head.into_iter().chain(&self.rows) {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in head.into_iter().chain(&self.rows) {
            let mut line = String::new();
            for ((cell, column), width) in row.iter().zip(&self.columns).zip(&widths) {
                let fill = " ".repeat(width - cell.chars().count());
                match column.align {
                    Align::Left => line.extend([cell.as_str(), &fill]),
                    Align::Right => line.extend([fill.as_str(), cell]),
                }
                line.push_str("  ");
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// What a verb found.
pub trait Page: Serialize {
    /// For people.
    fn tables(&self) -> Vec<Table>;

    /// For `-o jsonl`: a line for each item if the page is a list, else one line.
    fn lines(&self, out: &mut dyn Write) -> io::Result<()> {
        line(self, out)
    }
}

impl<T: Serialize> Page for Listing<T> {
    fn tables(&self) -> Vec<Table> {
        let mut table = Table::new(self.columns);
        self.items.iter().for_each(|item| table.row((self.cells)(item)));
        vec![table]
    }

    fn lines(&self, out: &mut dyn Write) -> io::Result<()> {
        self.items.iter().try_for_each(|item| line(item, out))
    }
}

/// A page that is a list of like things.
pub struct Listing<T> {
    pub columns: &'static [&'static str],
    pub cells: fn(&T) -> Vec<String>,
    pub items: Vec<T>,
}

impl<T: Serialize> Serialize for Listing<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.items.serialize(serializer)
    }
}

/// Writes one value as one line of JSON.
pub fn line(value: &(impl Serialize + ?Sized), out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)
}

/// Says something on standard error. If nobody reads that, it is their right.
pub fn tell(what: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "catamaran-dump: {what}");
}

/// Prints a page.
pub fn print(page: &impl Page, format: Format, out: &mut dyn Write) -> io::Result<()> {
    match format {
        Format::Table => {
            for (n, table) in page.tables().iter().enumerate() {
                if n > 0 {
                    writeln!(out)?;
                }
                table.write(out)?;
            }
        }
        Format::Json => {
            serde_json::to_writer_pretty(&mut *out, page)?;
            writeln!(out)?;
        }
        Format::Jsonl => page.lines(out)?,
    }
    out.flush()
}

/// A cell that may be empty.
pub fn cell<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_string(), |value| value.to_string())
}

/// A checksum as people compare it.
pub fn hex32(value: u32) -> String {
    format!("{value:#010x}")
}

/// Part of a whole in percent, with one decimal; nothing of nothing is 0.
pub fn percent(part: u64, whole: u64) -> f64 {
    match whole {
        0 => 0.0,
        _ => (part as f64 * 1000.0 / whole as f64).round() / 10.0,
    }
}
