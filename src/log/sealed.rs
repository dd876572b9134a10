//! What opening reads of each segment, several beside each other, and how footers come together: group by
//! group over all of them, so that a group is looked up once and not once for each segment.
//!
//! What is read is the same, and taken in the same order, whoever read it first: jobs fill places of their
//! own, and a group belongs to one job alone.

use super::GroupId;
use super::footer::{Groups, Summary, Trailer};
use super::groups::Index;
use super::index::Group;
use super::scan::Found;
use super::seal::{read_summary, read_trailer};
use super::unreadable::Sparse;
use crate::env::{Disk, Job};
use crate::error::Result;

/// So many segments are looked at together: their summaries are in memory at the same time.
pub(super) const STRETCH: usize = 32;

/// Bytes of the last segment that one job looks over: a few for each hand that opening has.
const PASS: usize = 8 << 20;

/// What stands behind a segment's records.
#[derive(Debug)]
pub(super) enum Sealed {
    /// No footer that is of use.
    No,
    /// A footer, though the segment after it is missing.
    Orphan(Trailer),
    /// A footer that does not read.
    Damaged(Trailer),
    Is(Summary),
}

/// What was read of a segment before any of it is replayed.
#[derive(Debug)]
pub(super) struct Looked {
    pub sealed: Sealed,
    /// All that may matter of the last segment. (Of others without a footer it is read when they are
    /// replayed, one at a time: they could be many.)
    pub bytes: Option<Sparse>,
}

fn look(segment: &Found) -> Result<Looked> {
    let mut looked = Looked { sealed: Sealed::No, bytes: None };
    if segment.is_void() {
        return Ok(looked);
    }
    let file = segment.file.as_ref();
    looked.sealed = match (read_trailer(file, &segment.header)?, segment.limit) {
        (None, _) => Sealed::No,
        // A footer is written when the next segment has its name. It has not been taken back.
        (Some(trailer), None) => Sealed::Orphan(trailer),
        (Some(trailer), Some(limit)) if trailer.next_seq != limit => Sealed::No,
        (Some(trailer), Some(_)) => match read_summary(file, trailer)? {
            Some(summary) => Sealed::Is(summary),
            None => Sealed::Damaged(trailer),
        },
    };
    Ok(looked)
}

/// Looks at segments, in their order.
pub(super) fn look_at(disk: &dyn Disk, segments: &[Found]) -> Result<Vec<Looked>> {
    let mut places: Vec<Option<Result<Looked>>> = segments.iter().map(|_| None).collect();
    let last = segments.iter().position(|segment| segment.limit.is_none());
    let passes = last.map_or(Ok(Vec::new()), |n| segments[n].passes(PASS))?;
    let mut ends: Vec<Result<usize>> = passes.iter().map(|_| Ok(0)).collect();
    // The last one takes longest, so it comes first and in parts.
    let parts = last.into_iter().flat_map(|n| passes.iter().map(move |part| (&segments[n], part)));
    let parts = ends.iter_mut().zip(parts);
    let parts = parts
        .map(|(end, (segment, part))| -> Job<'_> { Box::new(move || *end = segment.pass(part)) });
    let pairs = places.iter_mut().zip(segments);
    let pairs =
        pairs.map(|(place, segment)| -> Job<'_> { Box::new(move || *place = Some(look(segment))) });
    disk.run(parts.chain(pairs).collect());
    let mut looked: Vec<Looked> = places.into_iter().flatten().collect::<Result<_>>()?;
    if let Some(n) = last {
        let ends = ends.into_iter().collect::<Result<Vec<usize>>>()?;
        looked[n].bytes = Some(segments[n].read_to(ends.into_iter().max().unwrap_or(0))?);
    }
    Ok(looked)
}

/// Does to the index what these footers say that their segments, which follow each other, come to. Returns
/// the groups whose entries were dropped on the way; or, as an error, the first footer that makes no sense.
pub(super) fn merge(
    disk: &dyn Disk,
    index: &Index,
    summaries: &[Summary],
) -> Result<Vec<GroupId>, usize> {
    let parts = disk.hands().clamp(1, PARTS_MAX);
    let mut places: Vec<Result<Vec<GroupId>, usize>> = (0..parts).map(|_| Ok(Vec::new())).collect();
    let numbered = places.iter_mut().enumerate();
    let jobs = numbered.map(|(part, place)| -> Job<'_> {
        let mine = move |group: GroupId| Index::shard_of(group) % parts == part;
        Box::new(move || *place = merge_part(index, summaries, mine))
    });
    disk.run(jobs.collect());
    let mut wiped = Vec::new();
    let mut nonsense = None;
    for place in places {
        match place {
            Ok(groups) => wiped.extend(groups),
            Err(n) => nonsense = Some(nonsense.map_or(n, |first: usize| first.min(n))),
        }
    }
    nonsense.map_or(Ok(wiped), Err)
}

/// Every part reads all summaries for its share of the groups: more would read more than they share.
const PARTS_MAX: usize = 4;

fn merge_part(
    index: &Index,
    summaries: &[Summary],
    mine: impl Fn(GroupId) -> bool,
) -> Result<Vec<GroupId>, usize> {
    let mut cursors: Vec<Cursor<'_>> = Vec::with_capacity(summaries.len());
    let mut floor = 0;
    for (n, summary) in summaries.iter().enumerate() {
        floor = summary.floor.max(floor);
        let mut cursor = Cursor { groups: summary.groups(), at: None, floor };
        cursor.step(n)?;
        cursors.push(cursor);
    }
    let mut wiped = Vec::new();
    while let Some(group) = cursors.iter().filter_map(|cursor| cursor.at).min() {
        if mine(group) {
            index.change(group, |g| {
                let mut floor = 0;
                let here = cursors.iter().filter(|cursor| cursor.at == Some(group));
                g.runs.reserve(here.map(|cursor| cursor.groups.facts.runs()).sum());
                for cursor in cursors.iter().filter(|cursor| cursor.at == Some(group)) {
                    if cursor.floor > floor {
                        floor = cursor.floor;
                        g.drop_below_floor(floor);
                        forget_blank(g);
                    }
                    cursor.groups.facts.apply(g);
                    forget_blank(g);
                    if cursor.groups.facts.wiped {
                        wiped.push(group);
                    }
                }
            });
        }
        for (n, cursor) in cursors.iter_mut().enumerate() {
            if cursor.at == Some(group) {
                cursor.step(n)?;
            }
        }
    }
    Ok(wiped)
}

/// As if the group had left the index, and come back.
fn forget_blank(group: &mut Group) {
    if group.is_blank() {
        *group = Group::default();
    }
}

/// A walk through one summary.
struct Cursor<'a> {
    groups: Groups<'a>,
    /// The group it stands at.
    at: Option<GroupId>,
    /// The largest floor of its segment and those before.
    floor: u64,
}

impl Cursor<'_> {
    /// To the next group; the number of the summary if it makes no sense.
    fn step(&mut self, n: usize) -> Result<(), usize> {
        self.at = self.groups.advance().ok_or(n)?;
        Ok(())
    }
}
