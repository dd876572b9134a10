//! The first groups of a segment that opening makes: records of the last segment, and behind them one that repeats
//! their headers. The segment's own header states them durable from the moment on when it has its name, so what
//! backs them up comes with them, and does not wait until somebody writes.

use super::echo::{EchoDraft, unechoed};
use super::format::{BLOCK, RECORD_HEADER, RecordHeader, align};
use super::scan::Record;
use super::tail::Tail;

/// What a new segment begins with.
#[derive(Debug)]
pub(super) struct Copy<'a> {
    /// Its first record.
    pub base: u64,
    /// Bytes of the copied records, to the next block.
    pub len: usize,
    /// The number behind the copied records.
    pub next_seq: u64,
    /// Whether the record with that number is made here, to repeat others.
    pub repeats: bool,
    records: &'a [Record],
    /// The bytes that they lie in.
    old: &'a [u8],
    /// What the first record repeats: records of the segment before that nothing else repeats there.
    before: Vec<u8>,
    /// What repeats the copied ones.
    echo: Vec<u8>,
}

impl<'a> Copy<'a> {
    /// Of the records from `base` on, `unstated` being the first that nobody states durable. `before` is to be repeated
    /// of the segment before the tail's, if the tail's is given up.
    pub fn of(tail: &'a Tail, base: u64, unstated: u64, before: &[u8]) -> Copy<'a> {
        let (_, records) = tail.split(base);
        // An empty last record, a barrier's or one of these, has said all it had to say when it is stated by
        // nobody: the record behind the copied ones takes its number. A log that is opened again and again does not grow.
        let is_over = |last: &Record| last.header.seq >= unstated && last.is_empty();
        let over = records.last().is_some_and(is_over);
        let records = &records[..records.len() - usize::from(over)];
        let copy = Copy { records, ..Copy::empty(tail, base, before) };
        let repeats = over || !records.is_empty() || !copy.before.is_empty();
        Copy { repeats, ..copy }.planned()
    }

    /// The same, without anything that repeats others: the next group has to do it. It takes less room.
    pub fn bare(tail: &'a Tail, base: u64, before: &[u8]) -> Copy<'a> {
        let (_, records) = tail.split(base);
        Copy { records, ..Copy::empty(tail, base, before) }.planned()
    }

    fn empty(tail: &'a Tail, base: u64, before: &[u8]) -> Copy<'a> {
        let before = match base > tail.base_seq {
            true => unechoed(&tail.bytes, tail.split(base).0),
            false => before.to_vec(),
        };
        let (records, old, echo): (&[Record], _, _) = (&[], &tail.bytes[..], Vec::new());
        Copy { base, len: 0, next_seq: base, repeats: false, records, old, before, echo }
    }

    /// With what follows from the records.
    fn planned(mut self) -> Copy<'a> {
        self.next_seq = self.base + self.records.len() as u64;
        let mut echo = EchoDraft::new(BLOCK as u64, self.base);
        let mut len = 0;
        for (header, record) in self.headers(0) {
            echo.push(&header, &record.echoed_groups().unwrap_or_default());
            len += header.total();
        }
        self.echo = echo.finish();
        self.len = align(len);
        self
    }

    /// The headers that the records get here.
    fn headers(&self, generation: u64) -> impl Iterator<Item = (RecordHeader, &'a Record)> {
        let (base, before) = (self.base, if self.repeats { self.before.len() as u32 } else { 0 });
        self.records.iter().map(move |record| {
            let echo_len = if record.header.seq == base { before } else { 0 };
            // No more is repeated by then.
            let durable = base.saturating_sub(1);
            (RecordHeader { generation, durable, echo_len, ..record.header }, record)
        })
    }

    /// What is to be repeated behind the copied records: these, or, if there are none, those before.
    fn last_echo(&self) -> &[u8] {
        if self.records.is_empty() { &self.before } else { &self.echo }
    }

    /// Its header.
    fn last_header(&self, generation: u64) -> RecordHeader {
        RecordHeader {
            generation,
            seq: self.next_seq,
            durable: self.next_seq - 1,
            dir_len: 0,
            payload_len: 0,
            dir_crc: crc32c::crc32c(&[]),
            echo_len: self.last_echo().len() as u32,
        }
    }

    /// Bytes of all of it.
    pub fn bytes(&self) -> u64 {
        let last = if self.repeats { align(self.last_header(0).total()) } else { 0 };
        (self.len + last) as u64
    }

    /// All of it, for a segment of this generation, and where each record's payload begins.
    pub fn encode(&self, generation: u64, payloads: &mut Vec<u32>) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes() as usize);
        let mut put = |header: RecordHeader, body: &[u8], echo: &[u8], out: &mut Vec<u8>| {
            header.encode_to(out);
            payloads.push((BLOCK + out.len() + header.dir_len as usize) as u32);
            out.extend_from_slice(body);
            out.extend_from_slice(echo);
        };
        for (header, record) in self.headers(generation) {
            let body = &self.old[record.offset + RECORD_HEADER..record.echo_at()];
            let echo = if header.echo_len > 0 { &self.before[..] } else { &[] };
            put(header, body, echo, &mut out);
        }
        out.resize(align(out.len()), 0);
        if self.repeats {
            put(self.last_header(generation), &[], self.last_echo(), &mut out);
            out.resize(align(out.len()), 0);
        }
        out
    }

    /// What the next group is to repeat: the last record here, which has repeated the others, if it is made.
    pub fn own_echo(&self) -> Vec<u8> {
        if !self.repeats {
            return self.last_echo().to_vec();
        }
        let mut echo = EchoDraft::new((BLOCK + self.len) as u64, self.next_seq);
        echo.push(&self.last_header(0), &[]);
        echo.finish()
    }
}
