//! Taking over: what nobody states to be durable is copied into a segment of its own, on a disk that may
//! have no room for it.

use super::super::Options;
use super::super::copy::Copy;
use super::super::format::{BLOCK, align};
use super::super::scan::Found;
use super::super::segment::{Pool, Reserve, Reserved, Segment, Spare};
use super::super::tail::Tail;
use super::Replay;
use crate::error::{Error, Result};
use std::cell::LazyCell;

/// A file for the copy, of so many bytes: best of as many as the first says, at least of as many as the last. If there
/// is neither a spare nor room for one, not even a short one, the last segment gives the room: see [`give_rest`].
fn file_for(
    pool: &mut Pool,
    found: &[Found],
    tail: &Tail,
    copies: impl Fn() -> [u64; 3],
) -> Result<Spare> {
    let is_full = |taken: &Result<Spare>| matches!(taken, Err(Error::DiskFull { .. }));
    let mut taken = pool.take(Reserve::Use, 0);
    if !is_full(&taken) {
        return taken;
    }
    let [best, least, bare] = copies();
    taken = pool.make_short([best, least]);
    if is_full(&taken) && give_rest(found, tail)? {
        taken = pool.take(Reserve::Use, 0);
        if is_full(&taken) {
            taken = pool.make_short([best, least]);
        }
    }
    if is_full(&taken) {
        taken = pool.make_bare(bare);
    }
    taken
}

/// Gives the rest of the last segment's file, in which nothing was ever acknowledged, back to the disk; tells
/// whether there was one. Full segments have such a rest as well: the room for their footers.
///
/// What opening has looked at stays, and with it all that it has concluded: the next open, should this one end
/// here, finds a segment that is shorter than it was made, but ends behind the place where its next group would begin,
/// and holds none there. So nothing was lost (nothing is acknowledged behind a group that is not there), and it
/// says the same, with a note. A file that does not show as much is left as it is.
fn give_rest(found: &[Found], tail: &Tail) -> Result<bool> {
    let Some(last) = found.iter().find(|segment| segment.limit.is_none()) else {
        return Ok(false);
    };
    let matters = align(tail.bytes.len()) as u64;
    if tail.is_cut || matters >= last.file.len()? {
        return Ok(false);
    }
    tracing::warn!(path = ?last.path, to = matters,
        "the disk is full and nothing is in reserve: the unused rest of the last segment is given back");
    last.file.set_len(matters)?;
    // Some file systems give out what was freed only when the change is durable.
    last.file.sync_data()?;
    Ok(true)
}

impl Replay {
    /// Makes the new active segment, with a copy of what nobody states to be durable.
    pub(super) fn take_over(
        &mut self,
        pool: &mut Pool,
        found: &[Found],
        tail: Option<Tail>,
        options: &Options,
    ) -> Result<(Segment, u64)> {
        let last = self.next_seq - 1;
        let Some(tail) = tail else {
            let spare = pool.take(Reserve::Use, 0)?;
            pool.reserve()?;
            return Ok((pool.activate(spare, self.next_seq, last, |_| Vec::new())?, self.next_seq));
        };
        let (start, echoes) = (tail.base_seq, self.unechoed.as_deref().unwrap_or_default());
        let unstated = self.durable.saturating_add(1).min(self.next_seq).max(start);
        let least = Copy::of(&tail, unstated, unstated, echoes);
        // Not asked for, as a rule.
        let bare = LazyCell::new(|| Copy::bare(&tail, unstated, echoes));
        let all = LazyCell::new(|| Copy::of(&tail, start, unstated, echoes));
        let best = || if tail.clean { &*all } else { &least };
        let sizes = || [best().bytes(), least.bytes(), bare.bytes()];
        let spare = file_for(pool, found, &tail, sizes)?;
        let size = spare.file.len()?;
        // The block behind the last group stays free: that no other begins there is what ends a segment.
        let end = |copy: &Copy<'_>| copy.bytes() + 2 * BLOCK as u64;
        let fits = |copy: &Copy<'_>| end(copy) <= size;
        // A short segment is copied whole: the old file is free at once, and a node that restarts
        // often does not leave a trail of files. So is a long one on a full disk: the old file is the reserve
        // then, for purge and for the next open.
        let short = (BLOCK + tail.len()) as u64 <= options.segment_bytes / 4;
        let whole = tail.clean && (short || pool.reserve()? == Reserved::No) && fits(best());
        // A file that is too short for it is made longer, where there is room: more than for the next spare.
        let mut long =
            || -> Result<bool> { Ok(pool.reserve()? == Reserved::Yes && spare.grow(end(&least))?) };
        let copy = match (whole, whole || fits(&least) || long()?) {
            (true, _) => best(),
            (false, true) => &least,
            (false, false) => &bare,
        };
        let mut payloads = Vec::new();
        let durable = copy.next_seq - 1;
        let segment = pool.activate(spare, copy.base, durable, |generation| {
            copy.encode(generation, &mut payloads)
        })?;
        self.next_seq = copy.next_seq + u64::from(copy.repeats);
        self.echo = copy.own_echo();
        self.recovery.copied_bytes = copy.len as u64;
        self.places.insert(copy.base, payloads);
        Ok((segment, copy.base))
    }
}
