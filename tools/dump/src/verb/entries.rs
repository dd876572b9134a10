//! `entries`: live entries, decoded.

use super::Context;
use crate::cli::Entries;
use crate::decode::{Command, Show, decode, is_wanted};
use crate::failure::{Failure, Verdict};
use crate::load::LogDir;
use crate::model::name;
use crate::output::{Page, Table, line, print};
use serde::Serialize;
use std::io::{self, Write};

/// An entry as printed. Built while the log is read, so that data which is not asked for, or dies
/// further on, does not pile up.
#[derive(Serialize)]
struct Row {
    group: u64,
    index: u64,
    term: u64,
    bytes: usize,
    /// Where it stands: record, segment file, and the record's offset in it.
    seq: u64,
    file: String,
    offset: u64,
    #[serde(flatten)]
    command: Command,
}

#[derive(Serialize)]
#[serde(transparent)]
struct Rows {
    rows: Vec<Row>,
    #[serde(skip)]
    show: Show,
}

impl Page for Rows {
    fn tables(&self) -> Vec<Table> {
        let mut table = Table::new(&[
            "group>", "index>", "term>", "type", "bytes>", "batches>", "ops>", "seq>", "command",
        ]);
        for row in &self.rows {
            table.row(vec![
                row.group.to_string(),
                row.index.to_string(),
                row.term.to_string(),
                row.command.kind.to_string(),
                row.bytes.to_string(),
                row.command.batches.to_string(),
                row.command.ops.len().to_string(),
                row.seq.to_string(),
                row.command.text(self.show),
            ]);
        }
        vec![table]
    }

    fn lines(&self, out: &mut dyn Write) -> io::Result<()> {
        self.rows.iter().try_for_each(|row| line(row, out))
    }
}

/// `entries`.
pub fn run(args: &Entries, context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let show = Show { keys: context.keys, values: args.values };
    let loaded = LogDir::find(&args.at.dir)?.load(|record, group, entry| {
        is_wanted(group, entry, &args.entries).then(|| {
            Box::new(Row {
                group,
                index: entry.index,
                term: entry.term,
                bytes: entry.data.len(),
                seq: record.seq,
                file: name(&record.path),
                offset: record.offset,
                command: decode(entry, show),
            })
        })
    })?;
    let damaged = loaded.warn();
    let slots = loaded.model.groups.into_values().flat_map(|group| group.entries.into_values());
    let rows = slots.filter_map(|slot| slot.kept.map(|row| *row));
    let rows = rows.take(args.limit.unwrap_or(usize::MAX)).collect();
    print(&Rows { rows, show }, context.format, context.out)?;
    Ok(Verdict::bad_if(damaged))
}
