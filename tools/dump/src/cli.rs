//! The command line, as people type it.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// Looks into a Catamaran log: read-only, without a lock, beside a live node if need be.
#[derive(Parser, Debug)]
#[command(name = "catamaran-dump", version, propagate_version = true)]
#[command(after_help = "Exit codes: 0 fine, 2 usage, 3 cannot open, 4 corruption or difference.")]
#[command(after_long_help = EXAMPLES)]
pub struct Cli {
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// How to show keys and values.
    #[arg(long, global = true, value_enum, default_value_t = Keys::Auto)]
    pub keys: Keys,
    #[command(subcommand)]
    pub verb: Verb,
}

const EXAMPLES: &str = "\
Every DIR is a node's data directory (with `log/` in it) or the log directory itself.

Examples:
  catamaran-dump summary data/1
  catamaran-dump verify data/1 && echo sound
  catamaran-dump entries data/1 --group 7 --from 100 --to 120 --values
  catamaran-dump entries data/1 --type delete-range,cas --limit 20
  catamaran-dump stats data/1 -o json | jq .log.garbage_percent
  catamaran-dump tail data/1 -f -o jsonl
  catamaran-dump diff data/1 data/2 --common
  catamaran-dump completions bash > /etc/bash_completion.d/catamaran-dump

Exit codes:
  0  fine (a torn tail that was never acknowledged is fine)
  2  the command line makes no sense
  3  the directory cannot be opened or holds no log
  4  corruption, or the two logs differ";

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    /// Aligned columns, for people.
    Table,
    /// One JSON document.
    Json,
    /// One JSON document a line.
    Jsonl,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Keys {
    /// Text where all of it is printable, otherwise hexadecimal (with 0x in front).
    Auto,
    /// Text, with escapes for what is not printable.
    Utf8,
    /// Hexadecimal.
    Hex,
}

#[derive(Subcommand, Debug)]
pub enum Verb {
    /// The whole log on one page.
    Summary(Directory),
    /// Segment files: sequence numbers, how full, how much of it is live.
    Segments(Segments),
    /// Groups: first and last entry, truncated position, bytes.
    Groups(Groups),
    /// Live entries in order of group and index, with their commands decoded.
    Entries(Entries),
    /// State records: term, vote and commit of each group; group 0 is the store's identity.
    State(Groups),
    /// Where the bytes go: per group, garbage, records and batches per sync.
    Stats(Groups),
    /// Checks every checksum and every continuity. Exits 4 when acknowledged bytes are damaged.
    Verify(Groups),
    /// The last records, in the order in which they were written.
    Tail(Tail),
    /// Compares two replicas' logs, group by group. Exits 4 when they differ.
    Diff(Diff),
    /// Prints a completion script.
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Args, Debug)]
pub struct Directory {
    /// A node's data directory, or the log directory in it.
    pub dir: PathBuf,
}

#[derive(Args, Debug)]
pub struct Segments {
    #[command(flatten)]
    pub at: Directory,
    /// Only segments that hold this record number or later ones.
    #[arg(long, value_name = "SEQ")]
    pub from: Option<u64>,
    /// Only segments that hold this record number or earlier ones.
    #[arg(long, value_name = "SEQ")]
    pub to: Option<u64>,
    /// At most so many.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

#[derive(Args, Debug)]
pub struct Groups {
    #[command(flatten)]
    pub at: Directory,
    #[command(flatten)]
    pub only: GroupFilter,
    /// At most so many groups.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

#[derive(Args, Debug)]
pub struct Entries {
    #[command(flatten)]
    pub at: Directory,
    #[command(flatten)]
    pub only: GroupFilter,
    #[command(flatten)]
    pub indexes: Indexes,
    /// Only entries of this type, or with such an operation in them.
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',')]
    pub types: Vec<EntryType>,
    /// At most so many entries.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Show values too, and every operation.
    #[arg(long)]
    pub values: bool,
}

#[derive(Args, Debug)]
pub struct Tail {
    #[command(flatten)]
    pub at: Directory,
    #[command(flatten)]
    pub only: GroupFilter,
    /// From this record number on (instead of the last ones).
    #[arg(long, value_name = "SEQ")]
    pub from: Option<u64>,
    /// Up to this record number.
    #[arg(long, value_name = "SEQ")]
    pub to: Option<u64>,
    /// Only records with such an operation.
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',')]
    pub types: Vec<RecordType>,
    /// So many records.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    pub limit: usize,
    /// Go on printing what is written, until interrupted.
    #[arg(short, long)]
    pub follow: bool,
}

#[derive(Args, Debug)]
pub struct Diff {
    /// The one directory.
    pub a: PathBuf,
    /// The other.
    pub b: PathBuf,
    #[command(flatten)]
    pub only: GroupFilter,
    #[command(flatten)]
    pub indexes: Indexes,
    /// At most so many groups.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Only what both hold counts: one may lag, or be compacted further, than the other.
    #[arg(long)]
    pub common: bool,
}

#[derive(Args, Debug)]
pub struct GroupFilter {
    /// Only these groups: numbers and ranges (both ends included), as in 1,4,10-20.
    #[arg(long = "group", value_name = "GROUPS", value_delimiter = ',', value_parser = group_range)]
    groups: Vec<RangeInclusive<u64>>,
}

impl GroupFilter {
    pub fn takes(&self, group: u64) -> bool {
        self.groups.is_empty() || self.groups.iter().any(|range| range.contains(&group))
    }

    pub fn is_given(&self) -> bool {
        !self.groups.is_empty()
    }
}

#[derive(Args, Debug)]
pub struct Indexes {
    /// From this index on.
    #[arg(long, value_name = "INDEX", default_value_t = 0, hide_default_value = true)]
    pub from: u64,
    /// Up to this index, included.
    #[arg(long, value_name = "INDEX", default_value_t = u64::MAX, hide_default_value = true)]
    pub to: u64,
}

impl Indexes {
    pub fn range(&self) -> RangeInclusive<u64> {
        self.from..=self.to
    }
}

fn group_range(text: &str) -> Result<RangeInclusive<u64>, String> {
    let number = |text: &str| text.trim().parse::<u64>().map_err(|e| format!("{text:?}: {e}"));
    match text.split_once('-') {
        None => number(text).map(|n| n..=n),
        Some((from, to)) => {
            let (from, to) = (number(from)?, number(to)?);
            match from <= to {
                true => Ok(from..=to),
                false => Err(format!("{from} lies above {to}")),
            }
        }
    }
}

/// What an entry is, or what it contains.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum EntryType {
    /// Folded client batches.
    Normal,
    /// A leader's first entry, without data.
    Empty,
    /// A replicated compaction point.
    Compact,
    /// A change of membership.
    ConfChange,
    /// Data that this build cannot decode.
    Unknown,
    /// Contains a put.
    Put,
    /// Contains a delete.
    Delete,
    /// Contains a delete of a range.
    DeleteRange,
    /// Contains a compare-and-swap.
    Cas,
}

/// What a record of the log contains.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum RecordType {
    /// Entries appended.
    Append,
    /// Live entries moved by purge.
    Rewrite,
    /// A state record.
    State,
    /// A compaction.
    Compact,
    /// A log that starts anew after a snapshot.
    Reset,
    /// A truncated position restated by purge.
    Base,
    /// A group forgotten.
    Clear,
    /// Everything older is void.
    Floor,
}
