//! The command line, as people type it.

use crate::failure::Failure;
use crate::help;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// Looks into a Catamaran log: read-only, without a lock, beside a live node if need be. (`repair` alone
/// wants the node stopped, and writes a new log.)
#[derive(Parser, Debug)]
#[command(name = "catamaran-dump", version, propagate_version = true)]
#[command(
    after_help = "Exit codes: 0 fine, 2 usage, 3 cannot open or write, 4 corruption, difference or loss."
)]
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
  catamaran-dump groups data/1 --type conf-change
  catamaran-dump segments data/1 --group 7
  catamaran-dump state data/1 --type hard-state --from 1000
  catamaran-dump verify data/1 --type rot -o jsonl
  catamaran-dump stats data/1 -o json | jq .log.garbage_percent
  catamaran-dump tail data/1 -f -o jsonl
  catamaran-dump diff data/1 data/2 --common --group 1-16 --limit 10
  catamaran-dump repair data/1 --out repaired/log
  catamaran-dump completions bash > /etc/bash_completion.d/catamaran-dump

Filters choose what is shown; all that are given must hold:
  --group        groups; of segments: those that hold what such a group still needs
  --from, --to   both included: entry indexes (groups, entries, stats, diff), the commit
                 index (state), record numbers (segments, tail)
  --type         of entries (groups, entries, stats, diff), of records (tail), of state
                 records (state), of findings (verify)
  --limit        so many groups, entries, segments or records
Damage counts for the exit code wherever it is. A summary is always of the whole log.

Exit codes:
  0  fine (a torn tail that was never acknowledged is fine)
  2  the command line makes no sense
  3  the directory cannot be opened or holds no log, or standard output cannot be written (if
     its reader has gone: 0)
  4  corruption, or the two logs differ, or a repair left something out";

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    /// Aligned columns, for people.
    Table,
    /// One JSON document (of what is followed: one a line).
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
    #[command(after_long_help = help::SUMMARY)]
    Summary(Summary),
    /// Segment files: sequence numbers, how full, how much of it is live.
    #[command(after_long_help = help::SEGMENTS)]
    Segments(Segments),
    /// Groups: first and last entry, truncated position, bytes.
    ///
    /// With --from, --to or --type only such entries count, and groups without one are left out.
    #[command(after_long_help = help::GROUPS)]
    Groups(Groups),
    /// Live entries in order of group and index, with their commands decoded.
    #[command(after_long_help = help::ENTRIES)]
    Entries(Entries),
    /// State records: term, vote and commit of each group; group 0 is the store's identity.
    #[command(after_long_help = help::STATE)]
    State(States),
    /// Where the bytes go: per group and segment, garbage, padding, sizes of batches.
    ///
    /// Filters are for the groups: with --from, --to or --type only such entries count there, and groups
    /// that never had one are left out. The log's own figures are always of all of it.
    #[command(after_long_help = help::STATS)]
    Stats(Stats),
    /// Checks every checksum and every continuity. Exits 4 when acknowledged bytes are damaged.
    ///
    /// Filters choose which groups and findings are shown; the verdict is always of the whole log.
    #[command(after_long_help = help::VERIFY)]
    Verify(Verify),
    /// The last records, in the order in which they were written.
    #[command(after_long_help = help::TAIL)]
    Tail(Tail),
    /// Compares two replicas' logs, group by group. Exits 4 when they differ.
    ///
    /// With --from, --to or --type only entries that are such in A or in B are compared.
    #[command(after_long_help = help::DIFF)]
    Diff(Diff),
    /// Copies what is sound into a new log directory, and says what is not. Exits 4 when anything is dropped.
    #[command(after_long_help = help::REPAIR)]
    #[command(override_usage = "catamaran-dump repair [OPTIONS] <DIR> <--out <NEWDIR>|--dry-run>")]
    Repair(Repair),
    /// Prints a completion script.
    #[command(after_long_help = help::COMPLETIONS)]
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
}

impl Verb {
    /// What is asked for, but cannot be: a range that ends before it begins.
    pub fn check(&self) -> Result<(), Failure> {
        let of = |entries: &EntryFilter| (Some(entries.indexes.from), Some(entries.indexes.to));
        let (from, to) = match self {
            Verb::Segments(args) => (args.from, args.to),
            Verb::State(args) => (args.from, args.to),
            Verb::Tail(args) => (args.from, args.to),
            Verb::Groups(args) => of(&args.entries),
            Verb::Entries(args) => of(&args.entries),
            Verb::Stats(args) => of(&args.entries),
            Verb::Diff(args) => of(&args.entries),
            Verb::Summary(_) | Verb::Verify(_) | Verb::Repair(_) | Verb::Completions { .. } => {
                (None, None)
            }
        };
        match from.zip(to) {
            Some((from, to)) if from > to => {
                let what = format!("--from {from} lies above --to {to}: nothing is between them");
                Err(Failure::Usage(what))
            }
            _ => Ok(()),
        }
    }
}

#[derive(Args, Debug)]
pub struct Directory {
    /// A node's data directory, or the log directory in it.
    pub dir: PathBuf,
}

/// Nothing can be given.
#[derive(Clone, Debug)]
pub enum Never {}

/// A filter that has no meaning here: says why.
fn refuse(why: &'static str) -> impl Fn(&str) -> Result<Never, &'static str> + Clone + Send + Sync {
    move |_| Err(why)
}

const WHOLE: &str = "a summary is of the whole log; `groups`, `stats` and `entries` take filters";
const ANY_RECORD: &str =
    "segments hold records of any type; `tail --type` finds them, with their files";
const ANY_INDEX: &str = "a checksum is a record's, and its entries cannot be checked one by one; \
                         `verify --group` shows how far a group is good";

#[derive(Args, Debug)]
pub struct Summary {
    #[command(flatten)]
    pub at: Directory,
    #[command(flatten)]
    _none: NoFilter,
}

/// Taken, to tell why they are not.
#[derive(Args, Debug)]
struct NoFilter {
    #[arg(long = "group", hide = true, value_parser = refuse(WHOLE))]
    _group: Option<Never>,
    #[arg(long = "from", hide = true, value_parser = refuse(WHOLE))]
    _from: Option<Never>,
    #[arg(long = "to", hide = true, value_parser = refuse(WHOLE))]
    _to: Option<Never>,
    #[arg(long = "type", hide = true, value_parser = refuse(WHOLE))]
    _type: Option<Never>,
    #[arg(long = "limit", hide = true, value_parser = refuse(WHOLE))]
    _limit: Option<Never>,
}

#[derive(Args, Debug)]
pub struct Segments {
    #[command(flatten)]
    pub at: Directory,
    #[command(flatten)]
    pub only: GroupFilter,
    /// Only segments that hold this record number or later ones.
    #[arg(long, value_name = "SEQ")]
    pub from: Option<u64>,
    /// Only segments that hold this record number or earlier ones.
    #[arg(long, value_name = "SEQ")]
    pub to: Option<u64>,
    #[arg(long = "type", hide = true, value_parser = refuse(ANY_RECORD))]
    _type: Option<Never>,
    /// At most so many.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

#[derive(Args, Debug)]
pub struct Groups {
    #[command(flatten)]
    pub at: Directory,
    #[command(flatten)]
    pub entries: EntryFilter,
    /// At most so many groups.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

#[derive(Args, Debug)]
pub struct Stats {
    #[command(flatten)]
    pub at: Directory,
    #[command(flatten)]
    pub entries: EntryFilter,
    /// At most so many groups, those with the most live bytes, and segments, those with the most garbage.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

#[derive(Args, Debug)]
pub struct States {
    #[command(flatten)]
    pub at: Directory,
    #[command(flatten)]
    pub only: GroupFilter,
    /// Only groups that have committed this index.
    #[arg(long, value_name = "INDEX")]
    pub from: Option<u64>,
    /// Only groups that have committed no more than this index.
    #[arg(long, value_name = "INDEX")]
    pub to: Option<u64>,
    /// Only such state records.
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',')]
    pub types: Vec<StateType>,
    /// At most so many groups.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

#[derive(Args, Debug)]
pub struct Verify {
    #[command(flatten)]
    pub at: Directory,
    #[command(flatten)]
    pub only: GroupFilter,
    #[arg(long = "from", hide = true, value_parser = refuse(ANY_INDEX))]
    _from: Option<Never>,
    #[arg(long = "to", hide = true, value_parser = refuse(ANY_INDEX))]
    _to: Option<Never>,
    /// Show only such findings.
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',')]
    pub types: Vec<FindingType>,
    /// At most so many groups.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

#[derive(Args, Debug)]
pub struct Entries {
    #[command(flatten)]
    pub at: Directory,
    #[command(flatten)]
    pub entries: EntryFilter,
    /// At most so many entries.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Show values too, and every operation.
    #[arg(long)]
    pub values: bool,
}

/// Which entries are meant.
#[derive(Args, Debug)]
pub struct EntryFilter {
    #[command(flatten)]
    pub only: GroupFilter,
    #[command(flatten)]
    pub indexes: Indexes,
    /// Only entries of this type, or with such an operation in them.
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',')]
    pub types: Vec<EntryType>,
}

impl EntryFilter {
    /// Whether it leaves out entries of a group that it takes.
    pub fn is_choosy(&self) -> bool {
        !self.types.is_empty() || self.indexes.range() != (0..=u64::MAX)
    }
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
    pub entries: EntryFilter,
    /// At most so many groups.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Only what both hold counts: one may lag, or be compacted further, than the other.
    #[arg(long)]
    pub common: bool,
}

#[derive(Args, Debug)]
pub struct Repair {
    #[command(flatten)]
    pub at: Directory,
    /// Where the new log goes: a log directory that does not exist yet, or is empty.
    #[arg(long, value_name = "NEWDIR", required_unless_present = "dry_run")]
    pub out: Option<PathBuf>,
    /// Only says what would be kept and what dropped.
    #[arg(long, conflicts_with = "out")]
    dry_run: bool,
    /// Keeps what can be had of damaged groups too. DANGEROUS: see --help.
    #[arg(long)]
    pub keep_damaged: bool,
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
    /// A split, or ids taken from the cluster's counter.
    Admin,
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

/// What a state record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum StateType {
    /// Term, vote and commit of a region.
    HardState,
    /// Whose directory it is.
    Identity,
    /// Something else.
    Opaque,
}

/// What `verify` finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum FindingType {
    /// Acknowledged bytes that are damaged.
    Rot,
    /// An end that was never acknowledged.
    TornTail,
    /// Damage where nothing is stated to be durable.
    BeyondDurable,
}
