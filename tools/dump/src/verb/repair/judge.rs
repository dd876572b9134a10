//! What of a log is sound, group by group.
//!
//! **The log opens** (on an overlay, so that nothing is written): then the engine itself says which groups
//! are damaged, up to where they are good, and hands out the entries of the others, checked once more.
//!
//! **It does not**: acknowledged records are gone that could have been anybody's. A group is then whole only
//! if all that it consists of was written after the last such loss: its state record, every live entry, and
//! something that says where it ends (an append or a reset). Then no lost record can have said anything
//! about it that still counts. Every other group may lack entries that it acknowledged, or a vote that it
//! cast, and nobody can tell.

use super::super::groups::IDENT_GROUP;
use crate::failure::Failure;
use crate::load::{self, Loaded};
use crate::model::{Group, Kept, Model, name};
use crate::overlay::Overlay;
use catamaran::Error;
use catamaran::log::inspect::{FindingKind, Inspector};
use catamaran::log::{GroupId, Log, Options};
use catamaran::pb;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// How a group stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Nothing that it acknowledged is missing.
    Whole,
    /// Something is, or may be.
    Damaged {
        /// Up to here, and no further, its entries can be had: no gap, and all from one side of each loss.
        last_good: u64,
        why: String,
    },
}

/// What was found.
pub struct Judgement {
    /// Where the records are read from.
    pub inspector: Inspector,
    /// What the records that read add up to.
    pub model: Model<()>,
    /// The engine's own view, if the log opens.
    pub log: Option<Log>,
    pub fates: BTreeMap<GroupId, Fate>,
    /// What is gone without anybody knowing whose it was, in words.
    pub lost: Vec<String>,
    /// What was cut or damaged without harm, in words.
    pub notes: Vec<String>,
}

impl Judgement {
    /// The store's identity, if this is a node's log and it says so.
    pub fn is_nodes(&self) -> bool {
        self.model.groups.get(&IDENT_GROUP).is_some_and(is_identity)
    }
}

/// Written once, and never changed: what reads of it is right, whatever else is gone.
fn is_identity<T: Kept>(group: &Group<T>) -> bool {
    // Nearly anything short decodes; only an identity encodes to the same again.
    let same = |state: &[u8]| {
        let ident = pb::decode_ident(state).ok().filter(|ident| ident.store.0 > 0);
        ident.is_some_and(|ident| pb::encode_ident(&ident) == state)
    };
    group.entries.is_empty() && group.state.as_deref().is_some_and(same)
}

/// Looks at a log directory that nobody writes to.
pub fn judge(dir: &Path) -> Result<Judgement, Failure> {
    let overlay = Overlay::over(dir)?;
    let mut lost = Vec::new();
    let mut hidden = Vec::new();
    let inspector = loop {
        match Inspector::open(&overlay, dir) {
            Ok(inspector) => break inspector,
            // A segment whose header does not read, or is of another name, or a name without a file: without it
            // then, as if it were missing.
            Err(Error::Corruption { path, detail, .. }) if overlay.hide(&path) => {
                lost.push(format!("{}: no header of its own ({detail})", name(&path)));
                hidden.push(path);
            }
            Err(error) => return Err(error.into()),
        }
    };
    let Loaded { model, report } = load::read(&inspector, &mut |_, _, _| ())?;
    if model.segments.is_empty() && hidden.is_empty() {
        return Err(Failure::Open(format!("{}: no segment is left here", dir.display())));
    }
    let newest = model.segments.last().map(|segment| segment.path.clone());
    let end_is_gone = hidden.iter().any(|path| newest.as_ref().is_none_or(|newest| path > newest));
    let (fates, notes) = (BTreeMap::new(), Vec::new());
    let mut judgement = Judgement { inspector, model, log: None, fates, lost, notes };
    if end_is_gone {
        // Nobody knows what it held, nor how much; the engine would not miss it.
        judgement.model.lose_end();
        judgement.infer();
        return Ok(judgement);
    }
    let options = Options { segment_bytes: 1 << 20, ..Options::default() };
    match Log::open(Arc::new(overlay), dir, options) {
        Ok((log, recovery)) => {
            // What is unreadable was void.
            judgement.notes.append(&mut judgement.lost);
            let rot = report.findings.iter().filter(|found| found.kind == FindingKind::Rot);
            let suspects: BTreeSet<GroupId> = rot.filter_map(|found| found.group).collect();
            judgement.ask(&log, &recovery, &suspects)?;
            judgement.log = Some(log);
        }
        Err(Error::Corruption { path, offset, detail }) => {
            judgement.lost.push(format!("{} at {offset}: {detail}", name(&path)));
            if judgement.model.lost().next().is_none() {
                judgement.model.lose_end();
            }
            judgement.infer();
        }
        Err(error) => return Err(error.into()),
    }
    Ok(judgement)
}

impl Judgement {
    /// The engine's word, and for groups that verification names a look at every entry: an engine that reads
    /// lazily has not seen them.
    fn ask(
        &mut self,
        log: &Log,
        recovery: &catamaran::log::Recovery,
        suspects: &BTreeSet<GroupId>,
    ) -> Result<(), Failure> {
        for damage in &recovery.harmless {
            let file = name(&damage.file);
            self.notes.push(format!("{file} at {}: {}", damage.offset, damage.detail));
        }
        if let Some(torn) = &recovery.torn {
            let file = name(&torn.file);
            self.notes.push(format!(
                "{file} at {}: a torn tail, never acknowledged, from record {} on",
                torn.offset, torn.seq
            ));
        }
        for id in log.groups() {
            let found = recovery.quarantined.iter().find(|found| found.group == id);
            let damage = found.map(|found| found.damage.clone()).or_else(|| log.damage(id));
            let fate = match damage {
                Some(damage) => {
                    let good = found.map_or(u64::MAX, |found| found.last_good);
                    let why = match damage.file.as_os_str().is_empty() {
                        true => damage.detail,
                        false => {
                            let file = name(&damage.file);
                            format!("{file} at {}: {}", damage.offset, damage.detail)
                        }
                    };
                    Fate::Damaged { last_good: self.solid(id, good), why }
                }
                None if suspects.contains(&id) => match first_unreadable(log, id)? {
                    None => Fate::Whole,
                    Some((bad, error)) => {
                        Fate::Damaged { last_good: self.solid(id, bad - 1), why: error.to_string() }
                    }
                },
                None => Fate::Whole,
            };
            self.fates.insert(id, fate);
        }
        Ok(())
    }

    /// Without the engine.
    fn infer(&mut self) {
        self.lost.extend(self.model.lost().map(|(first, last)| match last {
            u64::MAX => format!("records from {first} on"),
            _ if first == last => format!("record {first}"),
            _ => format!("records {first} to {last}"),
        }));
        let last_loss = self.model.lost().map(|(_, last)| last).max().unwrap_or(0);
        let losses: Vec<(u64, u64)> = self.model.lost().collect();
        let fates = self.model.groups.iter().map(|(id, group)| {
            let loss = group.damages.iter().copied().max().unwrap_or(0).max(last_loss);
            let restated = group.state_seq > loss
                && group.tail_seq > loss
                && group.entries.values().all(|slot| slot.seq > loss);
            let identity = *id == IDENT_GROUP && is_identity(group);
            let end = group.entries.keys().next_back().copied();
            let whole = group.whole_to() >= end.unwrap_or(group.truncated.index);
            let fate = match (restated || identity) && whole {
                true => Fate::Whole,
                false => {
                    let own = group.damages.iter().map(|seq| (*seq, *seq));
                    let losses: Vec<(u64, u64)> = losses.iter().copied().chain(own).collect();
                    let last_good = solid_prefix(group, &losses);
                    let why = match group.damages.first() {
                        Some(seq) => format!("damaged in record {seq}"),
                        None if !whole => format!("entry {} is missing", group.whole_to() + 1),
                        None => "records are lost that may have been its own".to_owned(),
                    };
                    Fate::Damaged { last_good, why }
                }
            };
            (*id, fate)
        });
        self.fates = fates.collect();
    }

    fn solid(&self, id: GroupId, good: u64) -> u64 {
        let Some(group) = self.model.groups.get(&id) else { return 0 };
        let own: Vec<(u64, u64)> = group.damages.iter().map(|seq| (*seq, *seq)).collect();
        solid_prefix(group, &own).min(good).max(group.truncated.index)
    }
}

/// The last index of the run of entries from the truncated position on that has no gap and lies on one side
/// of each loss. What was lost may have replaced older entries: those and newer ones together would be a log
/// that never was.
fn solid_prefix<T: Kept>(group: &Group<T>, losses: &[(u64, u64)]) -> u64 {
    let whole = group.whole_to();
    let mut seqs = group.entries.range(..=whole).map(|(index, slot)| (*index, slot.seq));
    let Some((mut last, mut before)) = seqs.next() else { return whole };
    for (index, seq) in seqs {
        let (low, high) = (before.min(seq), before.max(seq));
        if losses.iter().any(|(first, to)| low < *first && high > *to) {
            break;
        }
        (last, before) = (index, seq);
    }
    last
}

/// The first entry that cannot be had.
fn first_unreadable(log: &Log, id: GroupId) -> Result<Option<(u64, Error)>, Failure> {
    let end = log.last_index(id) + 1;
    let mut next = log.first_index(id);
    while next < end {
        match log.entries(id, next, end, 1) {
            Ok(entries) => next += (entries.len() as u64).max(1),
            Err(error @ (Error::Corruption { .. } | Error::Quarantined { .. })) => {
                // It may have looked further than was asked: the next one alone may be sound.
                match log.entries(id, next, next + 1, 1) {
                    Ok(entries) if !entries.is_empty() => next += 1,
                    _ => return Ok(Some((next, error))),
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Slot;

    fn group(seqs: &[(u64, u64)]) -> Group<()> {
        let slot = |seq| Slot { seq, term: 1, bytes: 1, kept: () };
        let entries = seqs.iter().map(|(index, seq)| (*index, slot(*seq))).collect();
        Group { entries, ..Group::default() }
    }

    #[test]
    fn a_prefix_has_no_gap_and_lies_on_one_side_of_each_loss() {
        let solid = |seqs: &[(u64, u64)], losses: &[(u64, u64)]| solid_prefix(&group(seqs), losses);
        assert_eq!(solid(&[], &[(1, 9)]), 0);
        assert_eq!(solid(&[(1, 1), (2, 2), (4, 3)], &[]), 2);
        assert_eq!(solid(&[(2, 1)], &[]), 0);
        assert_eq!(solid(&[(1, 1), (2, 2), (3, 8), (4, 9)], &[(4, 6)]), 2);
        assert_eq!(solid(&[(1, 8), (2, 9), (3, 2)], &[(4, 6)]), 2);
        assert_eq!(solid(&[(1, 8), (2, 9), (3, 10)], &[(4, 6)]), 3);
        assert_eq!(solid(&[(1, 3), (2, 4), (3, 9)], &[(1, 1), (20, u64::MAX)]), 3);
    }
}
