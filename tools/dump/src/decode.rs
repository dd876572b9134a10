//! From an entry's bytes to what it says: kind, client batches, operations, keys.

use crate::cli::{EntryFilter, EntryType, Keys};
use catamaran::codec::admin::{Admin, Change, Child};
use catamaran::codec::command::{Op, Payload, ops};
use catamaran::codec::directory::StoreChange;
use catamaran::log::Entry;
use serde::Serialize;

/// What to keep of a decoded entry.
#[derive(Clone, Copy, Debug)]
pub struct Show {
    /// How keys and values are rendered.
    pub keys: Keys,
    /// Whether values are wanted.
    pub values: bool,
}

/// What an entry says.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Command {
    /// `normal`, `empty`, `compact`, `admin`, `conf-change` or `unknown`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The epoch version the batches were routed for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch_version: Option<u64>,
    /// Client batches folded into the entry.
    pub batches: u64,
    /// Operations in all of them, in order.
    pub ops: Vec<Operation>,
    /// Where a replicated compaction points.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compact_to: Option<Position>,
    /// What an administrative command does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin: Option<String>,
    /// Why the data cannot be decoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A place in a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Position {
    pub index: u64,
    pub term: u64,
}

/// One operation.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Operation {
    Put {
        key: String,
        value_bytes: usize,
        #[serde(skip_serializing_if = "Option::is_none")]
        value: Option<String>,
    },
    Delete {
        key: String,
    },
    DeleteRange {
        start: String,
        /// None: no upper end.
        end: Option<String>,
    },
    Cas {
        key: String,
        /// None: nothing may be there.
        expected: Option<Value>,
        /// None: the key is removed.
        new: Option<Value>,
    },
}

/// A value in a compare-and-swap.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Value {
    pub bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// Renders bytes as asked.
pub fn render(bytes: &[u8], keys: Keys) -> String {
    let hex = || bytes.iter().fold("0x".to_string(), |out, byte| out + &format!("{byte:02x}"));
    match keys {
        Keys::Hex => hex(),
        Keys::Utf8 => String::from_utf8_lossy(bytes).escape_debug().to_string(),
        Keys::Auto => match std::str::from_utf8(bytes) {
            // Text that looks like our hexadecimal would be mistaken for it.
            Ok(text) if !text.starts_with("0x") && !text.chars().any(char::is_control) => {
                text.to_string()
            }
            _ => hex(),
        },
    }
}

/// Decodes an entry. Never fails: what cannot be read is said to be so.
pub fn decode(entry: &Entry, show: Show) -> Command {
    let mut out = Command {
        kind: "unknown",
        epoch_version: None,
        batches: 0,
        ops: Vec::new(),
        compact_to: None,
        admin: None,
        problem: None,
    };
    match entry.kind {
        0 if entry.data.is_empty() => out.kind = "empty",
        0 => match Payload::parse(&entry.data) {
            Ok(Payload::Compact(to)) => {
                out.kind = "compact";
                out.compact_to = Some(Position { index: to.index, term: to.term });
            }
            Ok(Payload::Admin(admin)) => {
                out.kind = "admin";
                out.epoch_version = admin.epoch().map(|epoch| epoch.version);
                out.admin = Some(administers(&admin, show));
            }
            Ok(Payload::Normal { version, batches }) => {
                out.kind = "normal";
                out.epoch_version = Some(version);
                out.batches = batches.len() as u64;
                for batch in batches {
                    for op in ops(batch) {
                        match op {
                            Ok(op) => out.ops.push(operation(&op, batch, show)),
                            // Another state machine's command, most likely.
                            Err(error) => out.problem = Some(error.to_string()),
                        }
                    }
                }
            }
            Err(error) => out.problem = Some(error.to_string()),
        },
        1 | 2 => out.kind = "conf-change",
        // The entry's context says what replicas make of it.
        0x82 => {
            out.kind = "conf-change";
            match context(&entry.data).and_then(|said| Admin::decode(&said)) {
                Some(Ok(admin)) => out.admin = Some(administers(&admin, show)),
                Some(Err(error)) => out.problem = Some(error.to_string()),
                None => out.problem = Some("a change that is not ours".into()),
            }
        }
        kind => out.problem = Some(format!("entry kind {kind}")),
    }
    out
}

/// What stands before the data of an entry with a context.
fn context(data: &bytes::Bytes) -> Option<bytes::Bytes> {
    let len = data.first_chunk().map(|len| u32::from_le_bytes(*len) as usize)?;
    (data.len() - 4 >= len).then(|| data.slice(4..4 + len))
}

fn changed(change: Change) -> String {
    match change {
        Change::AddLearner { peer, store, passing: false } => {
            format!("add learner {peer} on {store}")
        }
        Change::AddLearner { peer, store, passing: true } => {
            format!("add learner {peer} on {store}, to be promoted")
        }
        Change::Promote(peer) => format!("promote {peer}"),
        Change::Demote(peer) => format!("demote {peer}"),
        Change::Remove(peer) => format!("remove {peer}"),
    }
}

fn administers(admin: &Admin, show: Show) -> String {
    match admin {
        Admin::Allocate { count } => format!("allocate {count} ids"),
        Admin::ChangePeers { changes, .. } => {
            let changes: Vec<String> = changes.iter().map(|change| changed(*change)).collect();
            changes.join(", ")
        }
        Admin::LeaveJoint { .. } => "leave the joint configuration".to_string(),
        Admin::Forget { peers } => {
            let peers: Vec<String> = peers.iter().map(|peer| peer.to_string()).collect();
            format!("forget {}", peers.join(", "))
        }
        Admin::PrepareMerge(prepare) => {
            format!("freeze, to be merged into {}", prepare.target.id)
        }
        Admin::CommitMerge(commit) => {
            let (source, at) = (commit.source.id, commit.at.index);
            format!("take in {source}, frozen at {at}, with {} entries", commit.entries.len())
        }
        Admin::RollBackMerge { at } => format!("thaw what {at} froze"),
        Admin::Stores(change) => match change {
            StoreChange::Register { record, .. } => {
                format!("register {} at {:?}", record.store, record.address)
            }
            StoreChange::Drain(store) => format!("drain {store}"),
            StoreChange::Resume(store) => format!("{store} stays"),
            StoreChange::Leave(store) => format!("{store} has left"),
        },
        Admin::Split(split) => {
            let child = |c: &Child| format!("{} from {}", c.region, render(&c.start, show.keys));
            let children: Vec<String> = split.children.iter().map(child).collect();
            format!("split off {}", children.join(", "))
        }
    }
}

fn operation(op: &Op, batch: &[u8], show: Show) -> Operation {
    let text = |range: &std::ops::Range<usize>| render(&batch[range.clone()], show.keys);
    let value = |range: &std::ops::Range<usize>| show.values.then(|| text(range));
    let optional = |range: &Option<std::ops::Range<usize>>| {
        range.as_ref().map(|range| Value { bytes: range.len(), value: value(range) })
    };
    match op {
        Op::Put { key, value: data } => {
            Operation::Put { key: text(key), value_bytes: data.len(), value: value(data) }
        }
        Op::Delete { key } => Operation::Delete { key: text(key) },
        Op::DeleteRange { start, end } => {
            Operation::DeleteRange { start: text(start), end: (!end.is_empty()).then(|| text(end)) }
        }
        Op::CompareAndSwap { key, expected, new } => {
            Operation::Cas { key: text(key), expected: optional(expected), new: optional(new) }
        }
    }
}

/// Whether an entry is one of those that are meant.
pub fn is_wanted(group: u64, entry: &Entry, filter: &EntryFilter) -> bool {
    let by_type = || {
        // Decoding takes time; keys and values are not looked at.
        let show = Show { keys: Keys::Utf8, values: false };
        filter.types.is_empty() || decode(entry, show).is_any_of(&filter.types)
    };
    filter.only.takes(group) && filter.indexes.range().contains(&entry.index) && by_type()
}

impl Command {
    /// Whether the entry is of one of these types, or contains such an operation. None: any.
    pub fn is_any_of(&self, types: &[EntryType]) -> bool {
        let has = |wanted: fn(&Operation) -> bool| self.ops.iter().any(wanted);
        types.is_empty()
            || types.iter().any(|wanted| match wanted {
                EntryType::Normal => self.kind == "normal",
                EntryType::Empty => self.kind == "empty",
                EntryType::Compact => self.kind == "compact",
                EntryType::Admin => self.kind == "admin",
                EntryType::ConfChange => self.kind == "conf-change",
                EntryType::Unknown => self.kind == "unknown" || self.problem.is_some(),
                EntryType::Put => has(|op| matches!(op, Operation::Put { .. })),
                EntryType::Delete => has(|op| matches!(op, Operation::Delete { .. })),
                EntryType::DeleteRange => has(|op| matches!(op, Operation::DeleteRange { .. })),
                EntryType::Cas => has(|op| matches!(op, Operation::Cas { .. })),
            })
    }

    /// In one line; the first few operations, or all of them when values are shown.
    pub fn text(&self, show: Show) -> String {
        const FEW: usize = 4;
        let shown = if show.values { self.ops.len() } else { FEW.min(self.ops.len()) };
        let mut parts: Vec<String> = self.ops[..shown].iter().map(Operation::text).collect();
        if self.ops.len() > shown {
            parts.push(format!("and {} more", self.ops.len() - shown));
        }
        parts.extend(self.compact_to.map(|to| format!("to {} (term {})", to.index, to.term)));
        parts.extend(self.admin.clone());
        parts.extend(self.problem.clone());
        parts.join(", ")
    }
}

impl Operation {
    fn text(&self) -> String {
        let optional = |value: &Option<Value>| match value {
            None => "nothing".to_string(),
            Some(Value { bytes, value }) => shown(*bytes, value),
        };
        match self {
            Operation::Put { key, value_bytes, value } => {
                format!("put {key}={}", shown(*value_bytes, value))
            }
            Operation::Delete { key } => format!("delete {key}"),
            Operation::DeleteRange { start, end } => {
                format!("delete-range {start}..{}", end.as_deref().unwrap_or_default())
            }
            Operation::Cas { key, expected, new } => {
                format!("cas {key}: {} -> {}", optional(expected), optional(new))
            }
        }
    }
}

fn shown(bytes: usize, value: &Option<String>) -> String {
    value.clone().unwrap_or_else(|| format!("({bytes} B)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_text_or_hexadecimal_and_never_ambiguous() {
        assert_eq!(render(b"key", Keys::Auto), "key");
        assert_eq!(render("h\u{e9}".as_bytes(), Keys::Auto), "h\u{e9}");
        assert_eq!(render(b"\x00\xff", Keys::Auto), "0x00ff");
        assert_eq!(render(b"a\nb", Keys::Auto), "0x610a62");
        assert_eq!(render(b"0x61", Keys::Auto), "0x30783631");
        assert_eq!(render(b"a\n", Keys::Utf8), "a\\n");
        assert_eq!(render(b"a", Keys::Hex), "0x61");
    }

    #[test]
    fn what_cannot_be_decoded_says_so() {
        let show = Show { keys: Keys::Auto, values: false };
        let entry =
            |kind, data: &'static [u8]| Entry { index: 1, term: 1, kind, data: data.into() };
        assert_eq!(decode(&entry(0, b""), show).kind, "empty");
        assert_eq!(decode(&entry(2, b"x"), show).kind, "conf-change");
        let odd = decode(&entry(0, b"\x09rubbish"), show);
        assert!(odd.kind == "unknown" && odd.problem.is_some());
        assert!(odd.is_any_of(&[EntryType::Unknown]) && !odd.is_any_of(&[EntryType::Put]));
    }
}
