//! The footer of a sealed segment: what its records come to, group by group, so that opening need not
//! read them. The page of the format has the offsets.
//!
//! A footer is a shortcut, never the truth: it is made from notes of records that are durable, or from
//! records that were read back whole, lies behind them, and is written only once the *next* segment has its
//! name. The order is: body, sync, trailer, sync. So a trailer that reads, of this generation and of the
//! very records that belong to the segment, proves that the body was durable; whatever else a crash leaves
//! there is no footer, and the records are read instead. A recycled file's old footer bears another generation.

mod trailer;

pub(super) use trailer::{TRAILER, Trailer};

use super::GroupId;
use super::format::{
    BadSum, Op, SegmentHeader, Span, Terms, can_hold, put, put_terms, read_u32, take,
    take_position, take_terms,
};
use super::index::{Dead, Group, Run};
use super::lz4::EXPANSION_MAX;
use super::scan::Record;
use crate::types::LogPosition;
use bytes::Bytes;
use std::collections::BTreeMap;

/// Runs in a section at most: what a reader of one entry has to load.
const SECTION_RUNS: usize = 128;

const FORGOTTEN: u8 = 1;
const WIPED: u8 = 2;
const CUT: u8 = 4;
const COMPACTED: u8 = 8;
const PLACED: u8 = 16;
const STATE: u8 = 32;

/// A statement of where a group's log begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Begin {
    pub at: LogPosition,
    pub seq: u64,
    /// A reset or base: so it is, whatever was before. Else a compaction: unless more was gone before.
    pub exact: bool,
}

/// What a segment does to one group, whatever the group was before.
///
/// - `group` holds the segment's own runs, with gaps where older segments have the entries.
#[derive(Default, Debug)]
pub(super) struct Net {
    forgotten: bool,
    wiped: bool,
    cut: Option<u64>,
    begin: Option<Begin>,
    group: Group,
}

impl Net {
    pub fn take(&mut self, seq: u64, op: &Op, state: Option<Bytes>) {
        match op {
            Op::Append { first, .. } => {
                self.cut = Some(self.cut.map_or(*first, |cut| cut.min(*first)));
            }
            Op::Compact { to, .. } => {
                let so_far = self.begin;
                if so_far.is_none_or(|b| b.at.index < to.index) {
                    let exact = so_far.is_some_and(|b| b.exact);
                    self.begin = Some(Begin { at: *to, seq, exact });
                }
            }
            Op::Base { at, .. } => self.begin = Some(Begin { at: *at, seq, exact: true }),
            Op::Reset { to, .. } => {
                self.wiped = true;
                self.cut = None;
                self.begin = Some(Begin { at: *to, seq, exact: true });
            }
            Op::Clear { .. } => {
                *self = Net { forgotten: true, wiped: true, ..Net::default() };
            }
            Op::State { .. } | Op::Rewrite { .. } | Op::Floor { .. } => {}
        }
        self.group.take(seq, op, state, &mut Dead::new());
    }

    /// Stretches of runs without a gap between them, none longer than a section.
    fn pieces(&self) -> Vec<Vec<Run>> {
        let mut pieces: Vec<Vec<Run>> = Vec::new();
        for run in &self.group.runs {
            match pieces.last_mut() {
                Some(piece)
                    if piece.len() < SECTION_RUNS
                        && piece.last().is_some_and(|last| last.end() == run.from) =>
                {
                    piece.push(*run);
                }
                _ => pieces.push(vec![*run]),
            }
        }
        pieces
    }
}

/// A footer in the making: the records of one segment, one after the other.
#[derive(Default, Debug)]
pub(super) struct Draft {
    nets: BTreeMap<GroupId, Net>,
    payloads: Vec<u32>,
    floor: u64,
}

impl Draft {
    /// Takes in the next record, which must be whole.
    pub fn record(&mut self, bytes: &[u8], record: &Record) {
        let payload = record.payload_at();
        let ops = record.ops.as_ref().map_or(&[][..], |ops| ops);
        // A whole record's bodies lie within it.
        let _ = self.take(record.header.seq, payload as u32, ops, |body| {
            let start = payload + body.rel as usize;
            bytes.get(start..start + body.len as usize)
        });
    }

    /// Takes in the operations of the next record. `None` if `state_at` does not know of a state.
    pub fn take<'a>(
        &mut self,
        seq: u64,
        payload_at: u32,
        ops: &[Op],
        mut state_at: impl FnMut(Span) -> Option<&'a [u8]>,
    ) -> Option<()> {
        self.payloads.push(payload_at);
        for op in ops {
            let Some(group) = op.group() else {
                if let Op::Floor { seq } = op {
                    self.floor = self.floor.max(*seq);
                }
                continue;
            };
            let state = match op {
                Op::State { body, .. } => Some(Bytes::copy_from_slice(state_at(*body)?)),
                _ => None,
            };
            self.nets.entry(group).or_default().take(seq, op, state);
        }
        Some(())
    }

    /// The runs of a group, ascending.
    pub fn runs(&self, group: GroupId) -> Vec<Run> {
        self.nets.get(&group).map_or(Vec::new(), |net| net.group.runs.iter().copied().collect())
    }

    /// The body, to be written at `at`, its trailer, and what the index may keep of each group instead
    /// of its runs.
    pub fn finish(&self, generation: u64, base_seq: u64, at: u64) -> Footer {
        let mut sections = Vec::new();
        let mut summary = Vec::new();
        let mut packed = Vec::new();
        put(&mut summary, self.payloads.len() as u64);
        let mut before = 0;
        for payload in &self.payloads {
            put(&mut summary, u64::from(payload - before));
            before = *payload;
        }
        put(&mut summary, self.floor);
        put(&mut summary, self.nets.len() as u64);
        let mut last_group = 0;
        for (group, net) in &self.nets {
            put(&mut summary, group - last_group);
            last_group = *group;
            put_facts(&mut summary, net, base_seq);
            let pieces = net.pieces();
            put(&mut summary, pieces.len() as u64);
            let mut of_group = Vec::new();
            for piece in pieces {
                let run = match piece[..] {
                    [one] => one,
                    _ => pack(&piece, base_seq, at, &mut sections),
                };
                put_run(&mut summary, &run, base_seq, at);
                put_terms(&mut summary, run.from, &net.group.terms_of(&run));
                if run.is_packed() {
                    of_group.push(run);
                }
            }
            if !of_group.is_empty() {
                packed.push((*group, of_group));
            }
        }
        let trailer = Trailer {
            generation,
            base_seq,
            next_seq: base_seq + self.payloads.len() as u64,
            sections_at: at,
            summary_at: at + sections.len() as u64,
            summary_len: summary.len() as u32,
            summary_crc: crc32c::crc32c(&summary),
        };
        let mut body = sections;
        body.extend_from_slice(&summary);
        Footer { body, trailer, packed }
    }
}

/// A footer ready to be written.
#[derive(Debug)]
pub(super) struct Footer {
    pub body: Vec<u8>,
    pub trailer: Trailer,
    pub packed: Vec<(GroupId, Vec<Run>)>,
}

/// A section that lists the runs of `piece`, and the packed run that stands for them.
fn pack(piece: &[Run], base_seq: u64, at: u64, sections: &mut Vec<u8>) -> Run {
    let start = sections.len();
    let mut live = 0;
    for run in piece {
        put(sections, run.seq - base_seq);
        put(sections, u64::from(run.count) << 1 | u64::from(run.skip > 0));
        if run.skip > 0 {
            put(sections, u64::from(run.skip));
        }
        put(sections, u64::from(run.body.rel));
        put(sections, u64::from(run.body.len));
        sections.extend_from_slice(&run.body.crc.to_le_bytes());
        live += run.body.len;
    }
    let section = &sections[start..];
    Run {
        from: piece[0].from,
        seq: base_seq,
        body: Span {
            rel: (at + start as u64) as u32,
            len: section.len() as u32,
            crc: crc32c::crc32c(section),
        },
        count: piece.iter().map(|run| run.count).sum(),
        skip: 0,
        packed: live.max(1),
    }
}

/// The runs that a packed one stands for, from its section. `None` if that is not what was written.
pub(super) fn unpack(packed: &Run, section: &[u8]) -> Option<Vec<Run>> {
    if crc32c::crc32c(section) != packed.body.crc {
        return None;
    }
    let mut input = section;
    let mut from = packed.from.checked_sub(u64::from(packed.skip))?;
    let mut runs = Vec::new();
    let mut entries = 0;
    while !input.is_empty() {
        let seq = packed.seq.checked_add(take(&mut input)?)?;
        let counts = take(&mut input)?;
        let skip = if counts & 1 == 1 { narrow(take(&mut input)?)? } else { 0 };
        let rel = narrow(take(&mut input)?)?;
        let body = take_span(&mut input, rel)?;
        let count = narrow(counts >> 1).filter(|count| can_hold(body.len, skip, *count))?;
        let run = Run { from, seq, body, count, skip, packed: 0 };
        from = from.checked_add(u64::from(run.count))?;
        let (low, high) = (run.from.max(packed.from), run.end().min(packed.end()));
        if low < high {
            entries += high - low;
            runs.push(run.part(low, high));
        }
    }
    // What it does not list would be gone without a word.
    (entries == u64::from(packed.count)).then_some(runs)
}

fn put_facts(out: &mut Vec<u8>, net: &Net, base_seq: u64) {
    let state = net.group.state.as_ref();
    let flags = [
        (FORGOTTEN, net.forgotten),
        (WIPED, net.wiped),
        (CUT, net.cut.is_some()),
        (COMPACTED, net.begin.is_some_and(|b| !b.exact)),
        (PLACED, net.begin.is_some_and(|b| b.exact)),
        (STATE, state.is_some()),
    ];
    out.push(flags.iter().filter(|(_, is)| *is).map(|(flag, _)| flag).sum());
    if let Some(cut) = net.cut {
        put(out, cut);
    }
    if let Some(begin) = net.begin {
        put(out, begin.at.index);
        put(out, begin.at.term);
        put(out, begin.seq - base_seq);
    }
    if let Some(state) = state {
        put(out, net.group.state_seq - base_seq);
        put(out, u64::from(net.group.state_rel));
        put(out, state.len() as u64);
        out.extend_from_slice(state);
    }
}

fn put_run(out: &mut Vec<u8>, run: &Run, base_seq: u64, at: u64) {
    put(out, run.from);
    put(out, u64::from(run.count) << 1 | u64::from(run.is_packed()));
    if run.is_packed() {
        put(out, u64::from(run.packed));
        put(out, u64::from(run.body.rel) - at);
    } else {
        put(out, run.seq - base_seq);
        put(out, u64::from(run.skip));
        put(out, u64::from(run.body.rel));
    }
    put(out, u64::from(run.body.len));
    out.extend_from_slice(&run.body.crc.to_le_bytes());
}

fn narrow(value: u64) -> Option<u32> {
    u32::try_from(value).ok()
}

fn take_span(input: &mut &[u8], rel: u32) -> Option<Span> {
    let len = narrow(take(input)?)?;
    let (crc, rest) = input.split_at_checked(4)?;
    *input = rest;
    Some(Span { rel, len, crc: read_u32(crc, 0) })
}

/// A footer's summary as read back.
#[derive(Debug)]
pub(super) struct Summary {
    pub trailer: Trailer,
    /// Where the payload of each record begins.
    pub payloads: Vec<u32>,
    /// The largest floor that a record of the segment states.
    pub floor: u64,
    bytes: Bytes,
    groups_at: usize,
}

impl Summary {
    /// Reads a summary. `None` if it is not what the trailer promises.
    pub fn decode(trailer: Trailer, bytes: Bytes) -> Option<Summary> {
        if bytes.len() != trailer.summary_len as usize
            || trailer.sections_at > trailer.summary_at
            || crc32c::crc32c(&bytes) != trailer.summary_crc
        {
            return None;
        }
        let mut input = &bytes[..];
        let records = take(&mut input)?;
        let next_seq = trailer.base_seq.checked_add(records);
        if records > input.len() as u64 || next_seq != Some(trailer.next_seq) {
            return None;
        }
        let mut payloads = Vec::with_capacity(records as usize);
        let mut at = 0u32;
        for _ in 0..records {
            at = at.checked_add(narrow(take(&mut input)?)?)?;
            payloads.push(at);
        }
        let floor = take(&mut input).filter(|floor| *floor < trailer.next_seq)?;
        let groups_at = bytes.len() - input.len();
        Some(Summary { trailer, payloads, floor, bytes, groups_at })
    }

    /// A walk through its groups.
    pub fn groups(&self) -> Groups<'_> {
        let input = &self.bytes[self.groups_at..];
        Groups { summary: self, input, left: None, group: 0, facts: Facts::default() }
    }

    /// Calls `each` for every group, ascending. `None` if the bytes make no sense (a writer from
    /// another world: their checksum held).
    pub fn each_group(&self, mut each: impl FnMut(GroupId, &Facts)) -> Option<()> {
        let mut groups = self.groups();
        while let Some(group) = groups.advance()? {
            each(group, &groups.facts);
        }
        Some(())
    }

    fn facts(&self, input: &mut &[u8], facts: &mut Facts) -> Option<()> {
        let (&flags, rest) = input.split_first()?;
        *input = rest;
        facts.forgotten = flags & FORGOTTEN > 0;
        facts.wiped = flags & WIPED > 0;
        facts.cut = if flags & CUT > 0 { Some(take(input)?) } else { None };
        facts.begin = None;
        if flags & (COMPACTED | PLACED) > 0 {
            let at = take_position(input)?;
            let seq = self.seq(input)?;
            facts.begin = Some(Begin { at, seq, exact: flags & PLACED > 0 });
        }
        facts.state = None;
        if flags & STATE > 0 {
            let seq = self.seq(input)?;
            let rel = narrow(take(input)?)?;
            let len = usize::try_from(take(input)?).ok()?;
            let (state, rest) = input.split_at_checked(len)?;
            facts.state = Some((seq, rel, self.bytes.slice_ref(state)));
            *input = rest;
        }
        facts.runs.clear();
        let mut end = 0;
        for _ in 0..take(input)? {
            let run = self.run(input).filter(|run| run.from >= end)?;
            end = run.end();
            facts.runs.push((run, take_terms(input, run.from, run.count)?));
        }
        Some(())
    }

    /// The number of one of the segment's records.
    fn seq(&self, input: &mut &[u8]) -> Option<u64> {
        let seq = self.trailer.base_seq.checked_add(take(input)?);
        seq.filter(|seq| *seq < self.trailer.next_seq)
    }

    fn run(&self, input: &mut &[u8]) -> Option<Run> {
        let from = take(input)?;
        let count = take(input)?;
        let is_packed = count & 1 == 1;
        let count = narrow(count >> 1).filter(|n| *n > 0)?;
        from.checked_add(u64::from(count))?;
        if is_packed {
            // Of many bodies together.
            let holds = |live: &u32| 2 * u64::from(count) < u64::from(*live) * EXPANSION_MAX;
            let packed = narrow(take(input)?).filter(holds)?;
            let rel = self.trailer.sections_at.checked_add(take(input)?)?;
            let body = take_span(input, narrow(rel)?)?;
            let seq = self.trailer.base_seq;
            return Some(Run { from, seq, body, count, skip: 0, packed });
        }
        let seq = self.seq(input)?;
        let skip = narrow(take(input)?)?;
        let rel = narrow(take(input)?)?;
        let body = take_span(input, rel).filter(|body| can_hold(body.len, skip, count))?;
        Some(Run { from, seq, body, count, skip, packed: 0 })
    }
}

/// A walk through the groups of a summary, ascending.
#[derive(Debug)]
pub(super) struct Groups<'a> {
    summary: &'a Summary,
    input: &'a [u8],
    /// Groups that are still to come; `None` at the beginning.
    left: Option<u64>,
    group: GroupId,
    /// Of the group where the walk stands.
    pub facts: Facts,
}

impl Groups<'_> {
    /// To the next group, or to the end (`Some(None)`). `None` if the bytes make no sense.
    pub fn advance(&mut self) -> Option<Option<GroupId>> {
        let is_first = self.left.is_none();
        let left = match self.left {
            Some(left) => left,
            None => take(&mut self.input)?,
        };
        self.left = Some(left.saturating_sub(1));
        if left == 0 {
            return self.input.is_empty().then_some(None);
        }
        // Twice the same one would be taken for two: what other footers do to it comes between them, or not.
        let above = take(&mut self.input).filter(|above| is_first || *above > 0)?;
        self.group = self.group.checked_add(above)?;
        self.summary.facts(&mut self.input, &mut self.facts)?;
        Some(Some(self.group))
    }
}

/// Checks the footer of a segment, if it has one, against itself and against its records.
pub(super) fn check_footer(
    header: &SegmentHeader,
    limit: Option<u64>,
    bytes: &Bytes,
    records: &[Record],
) -> Vec<(BadSum, Option<GroupId>, String)> {
    let at = bytes.len().saturating_sub(TRAILER);
    let trailer = Trailer::decode(&bytes[at..], header.generation);
    let Some(trailer) = trailer.filter(|t| t.base_seq == header.base_seq) else {
        return Vec::new();
    };
    let Some(limit) = limit else {
        let bad = BadSum { offset: at as u64, expected: 0, found: 0 };
        return vec![(bad, None, "the segment after this one is missing".into())];
    };
    if trailer.next_seq != limit {
        // Written for records of which a later segment has some: not in use.
        return Vec::new();
    }
    let part = |at: u64, len: u64| {
        let end = at.checked_add(len)?;
        bytes.get(usize::try_from(at).ok()?..usize::try_from(end).ok()?)
    };
    let summary = part(trailer.summary_at, u64::from(trailer.summary_len)).unwrap_or(&[]);
    let found = crc32c::crc32c(summary);
    let Some(read) = Summary::decode(trailer, bytes.slice_ref(summary)) else {
        let bad = BadSum { offset: trailer.summary_at, expected: trailer.summary_crc, found };
        return vec![(bad, None, "the summary in the footer".into())];
    };
    let mut bad = Vec::new();
    let sense = read.each_group(|group, facts| {
        for (run, _) in facts.runs.iter().filter(|(run, _)| run.is_packed()) {
            let section = part(u64::from(run.body.rel), u64::from(run.body.len)).unwrap_or(&[]);
            if unpack(run, section).is_none() {
                let (offset, expected) = (u64::from(run.body.rel), run.body.crc);
                let found = crc32c::crc32c(section);
                let what = format!("group {group}'s section in the footer");
                bad.push((BadSum { offset, expected, found }, Some(group), what));
            }
        }
    });
    if !bad.is_empty() || !records.iter().all(Record::is_whole) {
        return bad;
    }
    let mut draft = Draft::default();
    records.iter().for_each(|record| draft.record(bytes, record));
    let made = draft.finish(header.generation, header.base_seq, trailer.sections_at);
    if sense.is_none() || made.trailer != trailer {
        let (offset, expected) = (trailer.summary_at, made.trailer.summary_crc);
        let what = "the footer says other than the records".into();
        bad.push((BadSum { offset, expected, found }, None, what));
    }
    bad
}

/// What a segment does to one group, as a footer says it.
#[derive(Default, Debug)]
pub(super) struct Facts {
    forgotten: bool,
    pub wiped: bool,
    cut: Option<u64>,
    begin: Option<Begin>,
    state: Option<(u64, u32, Bytes)>,
    runs: Vec<(Run, Terms)>,
}

impl Facts {
    /// How many runs it adds.
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// Does it to the group, which is what all segments before come to.
    pub fn apply(&self, group: &mut Group) {
        let mut dead = Dead::new();
        if self.forgotten {
            *group = Group::default();
        } else if self.wiped {
            group.drop_all(&mut dead);
            group.damage = None;
        }
        if let Some(cut) = self.cut {
            group.drop_from(cut, &mut dead);
        }
        if let Some(Begin { at, seq, exact }) = self.begin
            && (exact || at.index > group.truncated.index)
        {
            group.drop_to(seq, at, &mut dead);
        }
        if let Some((seq, rel, state)) = &self.state {
            group.state = Some(state.clone());
            group.state_seq = *seq;
            group.state_rel = *rel;
        }
        for (run, terms) in &self.runs {
            if run.from > group.last() {
                group.push(*run, terms);
            } else {
                group.place(*run, terms, &mut dead);
            }
        }
    }
}

#[cfg(test)]
mod tests;
