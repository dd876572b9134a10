//! What `--help` of each verb says beside its options: examples, and what needs more than a line.

pub const SUMMARY: &str = "\
Examples:
  catamaran-dump summary data/1
  catamaran-dump summary data/1 -o json | jq .damaged";

pub const SEGMENTS: &str = "\
Examples:
  catamaran-dump segments data/1
  catamaran-dump segments data/1 --group 7
  catamaran-dump segments data/1 --from 1000 --to 2000 -o json";

pub const GROUPS: &str = "\
Examples:
  catamaran-dump groups data/1
  catamaran-dump groups data/1 --group 1-64 --limit 10
  catamaran-dump groups data/1 --type conf-change";

pub const ENTRIES: &str = "\
Examples:
  catamaran-dump entries data/1 --group 7 --from 100 --to 120 --values
  catamaran-dump entries data/1 --type delete-range,cas --limit 20
  catamaran-dump entries data/1 --group 7 --keys hex -o jsonl";

pub const STATE: &str = "\
Examples:
  catamaran-dump state data/1 --group 1,4,10-20
  catamaran-dump state data/1 --type hard-state --from 1000
  catamaran-dump state data/1 --type identity -o json";

pub const STATS: &str = "\
Garbage is what no group needs any more; what lies in a segment behind its last record is room, not \
garbage. A batch is what a caller wrote in one piece: one record; its size is with header and directory. \
Data, live bytes and garbage count what was given, before compression; what runs of entries take as they are \
stored stands beside it, and used bytes are of the file.

Examples:
  catamaran-dump stats data/1 --limit 10
  catamaran-dump stats data/1 --type put
  catamaran-dump stats data/1 -o json | jq .log.garbage_percent";

pub const VERIFY: &str = "\
Examples:
  catamaran-dump verify data/1 && echo sound
  catamaran-dump verify data/1 --group 7
  catamaran-dump verify data/1 --type rot -o jsonl";

pub const TAIL: &str = "\
With --follow it goes on until interrupted (SIGINT, SIGTERM) or until nobody reads what it prints, and \
exits with 0, or with 4 if a record that it printed was damaged. It follows into new segments and over restarts of the node, \
and ends with 3 when the log's directory is gone. A document that goes on has no end: with --follow, json is \
printed as jsonl. \
Records that were purged before they were seen are reported on standard error.

Examples:
  catamaran-dump tail data/1 -n 100
  catamaran-dump tail data/1 -f -o jsonl
  catamaran-dump tail data/1 --group 7 --type state --from 5000";

pub const DIFF: &str = "\
A group is `incomplete` if what both hold is the same and some of either does not read: nothing is known of \
that.

Examples:
  catamaran-dump diff data/1 data/2 --common
  catamaran-dump diff data/1 data/2 --group 1-16 --limit 10
  catamaran-dump diff data/1 data/2 --type put --to 5000 -o json";

pub const REPAIR: &str = "\
DIR is read and never written to. Its node must be stopped (a held lock is refused), or DIR be a copy. \
NEWDIR gets its name when the copy is complete and has been read back. Garbage is not copied. Sound groups \
are kept as they are; nothing is made up, and nothing put in another order.

A group of which anything acknowledged is missing is left out, its state record too: a replica that forgot \
entries or a vote must not vote as if it had not. Where DIR is a node's log:

- Each such group gets a mark for a state record. A node on NEWDIR fences it (outcome `fenced`) and serves \
the others. Remove the replica from its group and add a new one.

- If records are lost and nobody knows whose they were, every group that was not written anew since is \
taken for damaged, and the store's identity is left out: no node starts on NEWDIR. Let the store join as a \
new one.

--keep-damaged keeps, of damaged groups, the sound prefix (to the first gap or damage) and the last state \
record that reads. DANGER: a replica that starts from it has forgotten entries that it acknowledged, and \
perhaps votes: acknowledged writes can be lost, and replicas can diverge. Only for a group whose other \
replicas are all gone.

Dropped entries are counted with those that do not read, as far as the records tell which there were.

To use it, stop the node, move its `log` directory away, and NEWDIR to where it was.

Exit codes:
  0  everything was kept (a torn tail, never acknowledged, is no loss)
  2  the command line makes no sense: NEWDIR is not empty, lies in DIR, or is a link into nowhere
  3  DIR cannot be read or is in use, or NEWDIR cannot be written
  4  something was dropped; NEWDIR holds the rest

Examples:
  catamaran-dump repair data/1 --dry-run
  catamaran-dump repair data/1 --out repaired/log
  catamaran-dump repair data/1 --out repaired/log -o jsonl
  catamaran-dump repair data/1 --out repaired/log --keep-damaged";

pub const COMPLETIONS: &str = "\
Examples:
  catamaran-dump completions bash > /etc/bash_completion.d/catamaran-dump
  catamaran-dump completions zsh > ~/.zfunc/_catamaran-dump
  catamaran-dump completions fish > ~/.config/fish/completions/catamaran-dump.fish";
