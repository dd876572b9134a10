//! Walking a journal of operations: what a crash must have left, what it can have left, and what each
//! operation was for.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when it fails")]

use super::{Dice, Image, Step};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What of the unsynced operations survives.
#[derive(Clone, Copy, Debug)]
pub enum Survivors {
    None,
    All,
    /// The first n.
    Prefix(usize),
    /// Those whose bit is set.
    Mask(u64),
    /// Each by the toss of a coin.
    Subset(u64),
    /// Each write loses or keeps each of its sectors.
    Torn(u64),
    /// Everything, but one sector of one write holds garbage.
    Garbage(u64),
    /// Each by the toss of a coin, writes by sectors, and one sector of one write may hold garbage.
    Mixed(u64),
}

impl Survivors {
    pub fn kind(self) -> &'static str {
        match self {
            Survivors::None => "nothing",
            Survivors::All => "everything",
            Survivors::Prefix(_) => "a prefix",
            Survivors::Mask(_) | Survivors::Subset(_) => "a subset",
            Survivors::Torn(_) => "torn sectors",
            Survivors::Garbage(_) => "a garbage sector",
            Survivors::Mixed(_) => "subset, torn, garbage",
        }
    }
}

/// Walks a journal: what is certain, and what hangs in the air.
#[derive(Clone, Default)]
pub struct Crash {
    pub certain: Image,
    pub unsynced: Vec<Step>,
    pub acked: u64,
}

impl Crash {
    pub fn step(&mut self, step: &Step) {
        match step {
            Step::Sync { inode: synced } => self.settle(|step| match step {
                Step::Write { inode, .. } | Step::SetLen { inode, .. } => inode == synced,
                _ => false,
            }),
            Step::SyncDir => {
                self.settle(|step| {
                    matches!(step, Step::Create { .. } | Step::Rename { .. } | Step::Remove { .. })
                });
                // Every name there is is certain now.
                self.certain.trim();
                let files = &self.certain.files;
                self.unsynced.retain(|step| match step {
                    Step::Write { inode, .. } | Step::SetLen { inode, .. } => {
                        files.contains_key(inode)
                    }
                    _ => true,
                });
            }
            Step::Acked(seq) => self.acked = *seq,
            other => self.unsynced.push(other.clone()),
        }
    }

    fn settle(&mut self, is_certain: impl Fn(&Step) -> bool) {
        let certain = &mut self.certain;
        self.unsynced.retain(|step| {
            if is_certain(step) {
                certain.apply(step);
            }
            !is_certain(step)
        });
    }

    /// A number that no file had so far.
    pub fn next_inode(&self) -> u64 {
        let known = self.certain.files.keys().copied();
        let made = self.unsynced.iter().map(|step| match step {
            Step::Create { inode, .. } => *inode,
            _ => 0,
        });
        known.chain(made).max().unwrap_or(0) + 1
    }

    /// Everything that can have been left: no two choices are the same by construction.
    pub fn choices(&self, n: usize) -> Vec<Survivors> {
        let seed = (n as u64 + 1) * 0x9e37_79b9;
        let len = self.unsynced.len();
        if len == 0 {
            return vec![Survivors::None];
        }
        let mut all = vec![Survivors::None, Survivors::All];
        all.extend((1..len).map(Survivors::Prefix));
        if len <= 3 {
            // All subsets; those that are prefixes are there already.
            let masks = (1..1u64 << len).filter(|mask| (mask + 1) & mask != 0);
            all.extend(masks.map(Survivors::Mask));
        } else {
            all.extend([seed, seed ^ 0xffff, seed ^ 0xff_ffff].map(Survivors::Subset));
        }
        let sectors = |step: &Step| match step {
            Step::Write { bytes, .. } => bytes.len().div_ceil(512),
            _ => 0,
        };
        let most = self.unsynced.iter().map(sectors).max().unwrap_or(0);
        if most > 1 {
            all.extend([seed, seed ^ 0xffff, seed ^ 0xff_ffff].map(Survivors::Torn));
        }
        if most > 0 {
            all.extend([seed, seed ^ 0xffff, seed ^ 0xff_ffff].map(Survivors::Garbage));
        }
        if most > 0 && len > 1 {
            all.extend([seed, seed ^ 0xffff].map(Survivors::Mixed));
        }
        all
    }

    pub fn image(&self, survivors: Survivors) -> Image {
        let mut image = self.certain.clone();
        let mut dice = Dice(match survivors {
            Survivors::Subset(seed)
            | Survivors::Torn(seed)
            | Survivors::Garbage(seed)
            | Survivors::Mixed(seed) => seed | 1,
            _ => 1,
        });
        for (n, step) in self.unsynced.iter().enumerate() {
            let keep = match survivors {
                Survivors::None => false,
                Survivors::All | Survivors::Torn(_) | Survivors::Garbage(_) => true,
                Survivors::Prefix(len) => n < len,
                Survivors::Mask(mask) => mask >> n & 1 == 1,
                Survivors::Subset(_) | Survivors::Mixed(_) => dice.roll(2) == 0,
            };
            match (step, survivors) {
                (Step::Write { inode, at, bytes }, Survivors::Torn(_) | Survivors::Mixed(_)) => {
                    for (i, sector) in bytes.chunks(512).enumerate() {
                        if dice.roll(3) > 0 {
                            let at = at + i as u64 * 512;
                            let bytes = sector.to_vec();
                            image.apply(&Step::Write { inode: *inode, at, bytes });
                        }
                    }
                }
                _ if keep => image.apply(step),
                _ => {}
            }
        }
        let spoil = match survivors {
            Survivors::Garbage(_) => true,
            Survivors::Mixed(_) => dice.roll(2) == 0,
            _ => false,
        };
        if spoil {
            self.spoil(&mut image, &mut dice);
        }
        image.trim();
        image
    }

    fn spoil(&self, image: &mut Image, dice: &mut Dice) {
        let is_write =
            |step: &&Step| matches!(step, Step::Write { bytes, .. } if !bytes.is_empty());
        let writes: Vec<&Step> = self.unsynced.iter().filter(is_write).collect();
        let chosen = dice.roll(writes.len() as u64) as usize;
        let Some(Step::Write { inode, at, bytes }) = writes.get(chosen) else { return };
        let sectors = bytes.len().div_ceil(512) as u64;
        let from = dice.roll(sectors) * 512;
        let len = (bytes.len() as u64 - from).min(512);
        let bytes = (0..len).map(|_| dice.roll(256) as u8).collect();
        image.apply(&Step::Write { inode: *inode, at: at + from, bytes });
    }
}

/// Tells what each operation of a log's journal was for, from the names of files and what is written.
#[derive(Clone, Default, Debug)]
pub struct Purposes {
    segments: BTreeSet<u64>,
    by_path: BTreeMap<std::path::PathBuf, u64>,
    last_write: BTreeMap<u64, &'static str>,
    last_name: &'static str,
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "seg")
}

impl Purposes {
    pub fn of(image: &Image) -> Purposes {
        let named = |path: &Path| is_segment(path);
        Purposes {
            segments: image.names.iter().filter(|(p, _)| named(p)).map(|(_, i)| *i).collect(),
            by_path: image.names.clone(),
            ..Purposes::default()
        }
    }

    /// As they go on when the log is opened again.
    pub fn at_open(&self) -> Purposes {
        Purposes { last_name: "", ..self.clone() }
    }

    pub fn name(&mut self, step: &Step) -> &'static str {
        match step {
            Step::Create { path, inode } => {
                self.by_path.insert(path.clone(), *inode);
                self.last_name = "sync names: a spare";
                "create a spare"
            }
            Step::Write { inode, at, bytes } => {
                let magic = bytes.starts_with(&0x5243_5443_u32.to_le_bytes());
                let (write, sync) = match (self.segments.contains(inode), *at) {
                    (false, 0) if bytes.first() == Some(&0) => ("fill a spare", "sync a spare"),
                    (false, 0) => ("write a header", "sync a header"),
                    (false, _) if magic => ("copy a tail", "sync a copied tail"),
                    (false, _) => ("fill a spare", "sync a spare"),
                    (true, _) if magic => ("write a group", "sync a group"),
                    (true, _) if bytes.len() == 64 => ("write a trailer", "sync a trailer"),
                    (true, _) => ("write a footer", "sync a footer"),
                };
                self.last_write.insert(*inode, sync);
                write
            }
            Step::SetLen { .. } => "set a length",
            Step::Sync { inode } => self.last_write.get(inode).copied().unwrap_or("sync again"),
            Step::Rename { from, to } => {
                if let Some(inode) = self.by_path.remove(from) {
                    self.by_path.insert(to.clone(), inode);
                    match is_segment(to) {
                        true => self.segments.insert(inode),
                        false => self.segments.remove(&inode),
                    };
                }
                if is_segment(to) {
                    self.last_name = "sync names: a segment";
                    "name a segment"
                } else {
                    self.last_name = "sync names: recycled";
                    "recycle a segment"
                }
            }
            Step::Remove { path } => {
                self.by_path.remove(path);
                self.last_name = "sync names: removed";
                if is_segment(path) { "remove a segment" } else { "remove a spare" }
            }
            Step::SyncDir => match self.last_name {
                "" => "sync names: at open",
                name => name,
            },
            Step::Acked(_) => "acknowledge",
        }
    }
}
