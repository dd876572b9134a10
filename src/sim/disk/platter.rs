//! What a simulated disk holds: for every file the bytes the node sees, the bytes that are durable, and
//! the changes between the two; the same for names.

use super::fault::Faults;
use super::{Counts, Mercy, failed};
use crate::env::pages::Pages;
use crate::error::{Error, Result};
use crate::sim::rng::{Rng, mix};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(super) type InodeId = u64;

/// The unit a disk writes as a whole.
const SECTOR: u64 = 512;

/// An unsynced change of a file.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Bytes {
        offset: u64,
        data: Box<[u8]>,
    },
    /// A prefilled segment would be a heavy change otherwise.
    Zeros {
        offset: u64,
        len: usize,
    },
    Length(u64),
}

impl Change {
    pub(super) fn bytes(offset: u64, data: &[u8]) -> Change {
        match data.iter().all(|b| *b == 0) {
            true => Change::Zeros { offset, len: data.len() },
            false => Change::Bytes { offset, data: data.into() },
        }
    }

    fn len(&self) -> usize {
        match self {
            Change::Bytes { data, .. } => data.len(),
            Change::Zeros { len, .. } => *len,
            Change::Length(_) => 0,
        }
    }

    /// The length of the file afterwards.
    fn end(&self, before: u64) -> u64 {
        match self {
            Change::Bytes { offset, .. } | Change::Zeros { offset, .. } => match self.len() {
                0 => before,
                len => before.max(offset + len as u64),
            },
            Change::Length(len) => *len,
        }
    }

    /// The part that leaves the file at most `limit` long.
    fn cut_to(self, limit: u64) -> Change {
        match self {
            Change::Bytes { offset, data } => {
                let keep = limit.saturating_sub(offset).min(data.len() as u64) as usize;
                Change::Bytes { offset, data: data[..keep].into() }
            }
            Change::Zeros { offset, len } => {
                let keep = limit.saturating_sub(offset).min(len as u64) as usize;
                Change::Zeros { offset, len: keep }
            }
            Change::Length(len) => Change::Length(len.min(limit)),
        }
    }

    fn apply(&self, pages: &mut Pages) {
        match self {
            Change::Bytes { offset, data } => pages.write(*offset, data),
            Change::Zeros { offset, len } => pages.write(*offset, &vec![0; *len]),
            Change::Length(len) => pages.set_len(*len),
        }
    }

    /// Applies a part: every sector the change touches is written, left, or (one at most) garbled,
    /// each by one bit of `draw` and its successors. Bytes outside the change are never touched.
    fn apply_torn(&self, pages: &mut Pages, draw: u64, tear: Tear) {
        let (offset, len) = match self {
            Change::Bytes { offset, .. } | Change::Zeros { offset, .. } => (*offset, self.len()),
            Change::Length(_) => return self.apply(pages),
        };
        let end = offset + len as u64;
        let (first, last) = (offset / SECTOR, end.div_ceil(SECTOR));
        let sectors = last.saturating_sub(first).max(1);
        let cut = mix(draw) % (sectors + 1);
        let garbled = (mix(draw ^ 1).is_multiple_of(4)).then_some(mix(draw ^ 2) % sectors);
        for n in 0..last.saturating_sub(first) {
            let from = ((first + n) * SECTOR).max(offset);
            let to = ((first + n + 1) * SECTOR).min(end);
            let mut part = match self {
                Change::Bytes { data, .. } => {
                    data[(from - offset) as usize..(to - offset) as usize].to_vec()
                }
                _ => vec![0; (to - from) as usize],
            };
            let kept = match tear {
                Tear::Prefix => n < cut,
                Tear::Scatter => mix(draw ^ (n + 3)) & 1 == 0,
            };
            if garbled == Some(n) {
                for (at, byte) in part.iter_mut().enumerate() {
                    *byte ^= mix(draw ^ mix(at as u64)) as u8;
                }
            } else if !kept {
                continue;
            }
            pages.write(from, &part);
        }
    }
}

#[derive(Clone, Copy)]
enum Tear {
    Prefix,
    Scatter,
}

/// An unsynced change of names. Belongs to the directory of its (target) path.
#[derive(Clone, Debug)]
pub(super) enum DirOp {
    Link { path: PathBuf, inode: InodeId },
    Unlink { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf, inode: InodeId },
}

impl DirOp {
    fn dir(&self) -> Option<&Path> {
        match self {
            DirOp::Link { path, .. } | DirOp::Unlink { path } => path.parent(),
            DirOp::Rename { to, .. } => to.parent(),
        }
    }

    fn inode(&self) -> Option<InodeId> {
        match self {
            DirOp::Link { inode, .. } | DirOp::Rename { inode, .. } => Some(*inode),
            DirOp::Unlink { .. } => None,
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, InodeId>) {
        match self {
            DirOp::Link { path, inode } => drop(names.insert(path.clone(), *inode)),
            DirOp::Unlink { path } => drop(names.remove(path)),
            DirOp::Rename { from, to, inode } => {
                names.remove(from);
                names.insert(to.clone(), *inode);
            }
        }
    }
}

/// One file.
///
/// - `durable` plus all of `unsynced` gives `seen`, but for pages lost to a failed sync.
#[derive(Clone, Default, Debug)]
pub(super) struct Inode {
    pub(super) seen: Pages,
    durable: Pages,
    pub(super) unsynced: Vec<Change>,
    pub(super) handles: usize,
}

/// The whole disk.
#[derive(Clone, Debug)]
pub(super) struct Platter {
    rng: Rng,
    pub(super) faults: Faults,
    pub(super) counts: Counts,
    /// Grows with each crash; handles of another era are dead.
    pub(super) era: u64,
    pub(super) off: bool,
    pub(super) busy: Duration,
    pub(super) dirs: BTreeSet<PathBuf>,
    pub(super) names: BTreeMap<PathBuf, InodeId>,
    durable_names: BTreeMap<PathBuf, InodeId>,
    pub(super) dir_ops: Vec<DirOp>,
    pub(super) inodes: BTreeMap<InodeId, Inode>,
    next_inode: InodeId,
    pub(super) locks: BTreeSet<PathBuf>,
}

impl Platter {
    pub(super) fn new(rng: Rng) -> Platter {
        Platter {
            rng,
            faults: Faults::default(),
            counts: Counts::default(),
            era: 0,
            off: false,
            busy: Duration::ZERO,
            dirs: BTreeSet::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            dir_ops: Vec::new(),
            inodes: BTreeMap::new(),
            next_inode: 0,
            locks: BTreeSet::new(),
        }
    }

    pub(super) fn expect_on(&self, op: &'static str, path: &Path) -> Result<()> {
        match self.off {
            true => failed(op, path, ErrorKind::BrokenPipe),
            false => Ok(()),
        }
    }

    pub(super) fn has_dir(&self, dir: &Path) -> bool {
        dir.as_os_str().is_empty() || dir.parent().is_none() || self.dirs.contains(dir)
    }

    pub(super) fn expect_parent(&self, op: &'static str, path: &Path) -> Result<()> {
        match path.parent() {
            Some(dir) if self.has_dir(dir) => Ok(()),
            _ => failed(op, path, ErrorKind::NotFound),
        }
    }

    pub(super) fn new_inode(&mut self) -> InodeId {
        self.next_inode += 1;
        self.inodes.insert(self.next_inode, Inode::default());
        self.next_inode
    }

    pub(super) fn used(&self) -> u64 {
        let named: BTreeSet<InodeId> = self.names.values().copied().collect();
        named.iter().filter_map(|id| self.inodes.get(id)).map(|node| node.seen.len()).sum()
    }

    /// Whether the power fails during the change just counted.
    fn loses_power(&mut self) -> bool {
        self.off = self.faults.power_off_after.is_some_and(|n| self.counts.changes() >= n);
        self.off
    }

    fn fault<T>(&mut self, op: &'static str, path: &Path) -> Result<T> {
        self.counts.faults += 1;
        // What an operating system calls EIO has no stable kind of its own.
        Err(Error::io(op, path, std::io::Error::other("injected I/O error")))
    }

    /// Names change at once for the node, durably with the next sync of the directory.
    pub(super) fn change_dir(&mut self, path: &Path, op: DirOp) -> Result<()> {
        self.counts.dir_changes += 1;
        op.apply(&mut self.names);
        self.dir_ops.push(op);
        match self.loses_power() {
            true => failed("change directory of", path, ErrorKind::BrokenPipe),
            false => Ok(()),
        }
    }

    pub(super) fn sync_dir(&mut self, dir: &Path) -> Result<()> {
        self.counts.dir_syncs += 1;
        self.busy += self.faults.speed.sync;
        if self.loses_power() {
            return failed("sync directory", dir, ErrorKind::BrokenPipe);
        }
        let nth = self.counts.dir_syncs;
        if self.faults.dir_sync.strikes(&mut self.rng, "disk.dir_sync.fail", nth) {
            return self.fault("sync directory", dir);
        }
        for op in std::mem::take(&mut self.dir_ops) {
            match op.dir() == Some(dir) {
                true => op.apply(&mut self.durable_names),
                false => self.dir_ops.push(op),
            }
        }
        self.forget_nameless();
        Ok(())
    }

    /// Drops files that no name, no unsynced change of names and no handle leads to.
    pub(super) fn forget_nameless(&mut self) {
        let mut named: BTreeSet<InodeId> = self.names.values().copied().collect();
        named.extend(self.durable_names.values());
        named.extend(self.dir_ops.iter().filter_map(DirOp::inode));
        self.inodes.retain(|id, node| node.handles > 0 || named.contains(id));
    }

    pub(super) fn read(
        &mut self,
        inode: InodeId,
        path: &Path,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<usize> {
        self.counts.reads += 1;
        self.busy += self.faults.speed.read;
        let nth = self.counts.reads;
        if self.faults.read.strikes(&mut self.rng, "disk.read.fail", nth) {
            return self.fault("read", path);
        }
        Ok(self.inodes.get(&inode).map_or(0, |node| node.seen.read(offset, buf)))
    }

    fn put(&mut self, inode: InodeId, change: Change) {
        if let Some(node) = self.inodes.get_mut(&inode) {
            change.apply(&mut node.seen);
            node.unsynced.push(change);
        }
    }

    /// Writes, or changes the length (`offset` is the new length then).
    pub(super) fn write(
        &mut self,
        inode: InodeId,
        path: &Path,
        offset: u64,
        change: Change,
    ) -> Result<()> {
        let len = change.len();
        self.counts.writes += 1;
        self.counts.bytes_written += len as u64;
        self.busy += self.faults.speed.write;
        if self.faults.speed.bytes_per_second > 0 {
            let nanos =
                len as u128 * 1_000_000_000 / u128::from(self.faults.speed.bytes_per_second);
            self.busy += Duration::from_nanos(nanos as u64);
        }
        if self.loses_power() {
            self.put(inode, change);
            return failed("write", path, ErrorKind::BrokenPipe);
        }
        let part = self.rng.range("disk.write.part", 0..len as u64 + 1);
        let nth = self.counts.writes;
        if self.faults.write.strikes(&mut self.rng, "disk.write.fail", nth) {
            if len > 0 {
                self.put(inode, change.cut_to(offset.saturating_add(part)));
            }
            return self.fault("write", path);
        }
        if let Some(capacity) = self.faults.capacity {
            let before = self.inodes.get(&inode).map_or(0, |node| node.seen.len());
            let limit = before + capacity.saturating_sub(self.used());
            if change.end(before) > limit {
                self.counts.faults += 1;
                if len > 0 {
                    self.put(inode, change.cut_to(limit));
                }
                return failed("write", path, ErrorKind::StorageFull);
            }
        }
        self.put(inode, change);
        Ok(())
    }

    pub(super) fn sync(&mut self, inode: InodeId, path: &Path) -> Result<()> {
        self.counts.syncs += 1;
        let nth = self.counts.syncs;
        self.busy += self.faults.speed.sync;
        let most = self.faults.speed.stall.as_nanos() as u64;
        let stall = self.rng.range("disk.stall.time", 0..most.max(1));
        if self.faults.speed.stalls.strikes(&mut self.rng, "disk.stall", nth) {
            self.busy += Duration::from_nanos(stall);
        }
        if self.loses_power() {
            return failed("sync", path, ErrorKind::BrokenPipe);
        }
        let fails = self.faults.sync.strikes(&mut self.rng, "disk.sync.fail", nth);
        let Some(node) = self.inodes.get_mut(&inode) else { return Ok(()) };
        let changes = std::mem::take(&mut node.unsynced);
        if fails {
            for change in changes {
                // What does not make it now never will: the pages count as clean from here on.
                if self.rng.chance("disk.sync.fail.keep", 500) {
                    change.apply(&mut node.durable);
                }
            }
            return self.fault("sync", path);
        }
        for change in &changes {
            match change {
                Change::Bytes { offset, .. } | Change::Zeros { offset, .. } => {
                    // Whole pages are written back, so both sides can share them.
                    node.durable.adopt(&node.seen, *offset, change.len());
                }
                Change::Length(len) => {
                    if *len < node.durable.len() {
                        node.durable.set_len(*len);
                    }
                }
            }
        }
        node.durable.adopt_len(node.seen.len());
        Ok(())
    }

    pub(super) fn crash(&mut self, mercy: Mercy) {
        self.counts.crashes += 1;
        self.era += 1;
        self.off = false;
        self.faults.power_off_after = None;
        self.busy = Duration::ZERO;
        self.locks.clear();
        let drawn = self.rng.range("disk.crash.mercy", 0..4);
        let mercy = match (mercy, drawn) {
            (Mercy::Drawn, 0) => Mercy::All,
            (Mercy::Drawn, 1) => Mercy::None,
            (Mercy::Drawn, 2) => Mercy::Prefix,
            (Mercy::Drawn, _) => Mercy::Subset,
            (chosen, _) => chosen,
        };
        for node in self.inodes.values_mut() {
            node.handles = 0;
            let changes = std::mem::take(&mut node.unsynced);
            survive(&mut node.durable, &changes, mercy, &mut self.rng);
            node.seen = node.durable.clone();
        }
        self.crash_names(mercy);
        self.forget_nameless();
    }

    /// Each directory keeps a prefix of its unsynced changes.
    fn crash_names(&mut self, mercy: Mercy) {
        let ops = std::mem::take(&mut self.dir_ops);
        let mut left: BTreeMap<PathBuf, u64> = BTreeMap::new();
        for dir in ops.iter().filter_map(DirOp::dir) {
            *left.entry(dir.to_owned()).or_default() += 1;
        }
        for count in left.values_mut() {
            let drawn = self.rng.range("disk.crash.names", 0..*count + 1);
            *count = match mercy {
                Mercy::All => *count,
                Mercy::None => 0,
                Mercy::Prefix | Mercy::Subset | Mercy::Drawn => drawn,
            };
        }
        for op in ops {
            let Some(count) = op.dir().and_then(|dir| left.get_mut(dir)) else { continue };
            if *count > 0 {
                *count -= 1;
                op.apply(&mut self.durable_names);
            }
        }
        self.names = self.durable_names.clone();
    }

    pub(super) fn rot(&mut self, path: &Path, offset: u64, mask: u8) -> Result<()> {
        let inode = self.durable_names.get(path).and_then(|id| self.inodes.get_mut(id));
        match inode {
            Some(node) if offset < node.durable.len() => {
                node.durable.flip(offset, mask);
                // The node sees it too, unless it wrote that byte since.
                node.seen = node.durable.clone();
                let unsynced = std::mem::take(&mut node.unsynced);
                unsynced.iter().for_each(|change| change.apply(&mut node.seen));
                node.unsynced = unsynced;
                Ok(())
            }
            _ => failed("rot", path, ErrorKind::NotFound),
        }
    }

    pub(super) fn rot_somewhere(
        &mut self,
        wanted: impl Fn(&Path) -> bool,
    ) -> Option<(PathBuf, u64)> {
        let sizes: Vec<(PathBuf, u64)> = self
            .durable_names
            .iter()
            .filter(|(path, _)| wanted(path))
            .filter_map(|(path, id)| Some((path.clone(), self.inodes.get(id)?.durable.len())))
            .collect();
        let total = sizes.iter().map(|(_, len)| len).sum();
        let mut at = self.rng.range("disk.rot.where", 0..total);
        let mask = 1u8 << (self.rng.draw("disk.rot.bit") % 8);
        for (path, len) in sizes {
            if at < len {
                return self.rot(&path, at, mask).is_ok().then_some((path, at));
            }
            at -= len;
        }
        None
    }
}

/// Applies to `durable` what of `changes` survives.
fn survive(durable: &mut Pages, changes: &[Change], mercy: Mercy, rng: &mut Rng) {
    let cut = rng.range("disk.crash.prefix", 0..changes.len() as u64 + 1) as usize;
    for (n, change) in changes.iter().enumerate() {
        let fate = rng.range("disk.crash.fate", 0..4);
        let draw = rng.draw("disk.crash.tear");
        match (mercy, fate) {
            (Mercy::All, _) => change.apply(durable),
            (Mercy::None, _) => {}
            (Mercy::Prefix, _) if n < cut => change.apply(durable),
            (Mercy::Prefix, _) if n == cut => change.apply_torn(durable, draw, Tear::Prefix),
            (Mercy::Prefix, _) => {}
            (_, 0) => {}
            (_, 1) => change.apply_torn(durable, draw, Tear::Prefix),
            (_, 2) => change.apply_torn(durable, draw, Tear::Scatter),
            (_, _) => change.apply(durable),
        }
    }
}
