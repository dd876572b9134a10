//! The rows of writing: what is written, by how many threads, how far ahead.

use bytes::Bytes;

/// Entries of one group within a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The group, from 1.
    pub group: u64,
    /// Index of the first entry.
    pub first: u64,
    /// Entries.
    pub count: u64,
    /// The group's entries up to here go.
    pub compact_to: Option<u64>,
}

/// One row: what each thread does over and over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Work {
    /// Its name in tables and on the command line.
    pub name: &'static str,
    /// Groups, an equal part for each thread.
    pub groups: u64,
    /// Threads that write.
    pub threads: u64,
    /// Groups of a write.
    pub span: u64,
    /// Entries of a write for each of them.
    pub each: u64,
    /// Bytes of an entry.
    pub size: usize,
    /// Writes outstanding per thread.
    pub window: usize,
}

/// Every row.
pub const ROWS: [Work; 9] = [
    Work { name: "1x1", groups: 1, threads: 1, span: 1, each: 1, size: 128, window: 1 },
    Work { name: "1x4", groups: 4, threads: 4, span: 1, each: 1, size: 128, window: 1 },
    Work {
        name: "1x2-ahead-512",
        groups: 1000,
        threads: 2,
        span: 1,
        each: 1,
        size: 128,
        window: 512,
    },
    Work { name: "64x64", groups: 1000, threads: 2, span: 64, each: 1, size: 128, window: 1 },
    Work {
        name: "64x64-ahead-16",
        groups: 1000,
        threads: 2,
        span: 64,
        each: 1,
        size: 128,
        window: 16,
    },
    Work { name: "64x64-1k", groups: 1000, threads: 2, span: 64, each: 1, size: 1024, window: 1 },
    Work {
        name: "64x64-1k-ahead-16",
        groups: 1000,
        threads: 2,
        span: 64,
        each: 1,
        size: 1024,
        window: 16,
    },
    Work { name: "1024x256", groups: 1000, threads: 2, span: 256, each: 4, size: 128, window: 1 },
    Work {
        name: "1024x256-ahead-16",
        groups: 1000,
        threads: 2,
        span: 256,
        each: 4,
        size: 128,
        window: 16,
    },
];

/// A group keeps this many entries when it is compacted, and is compacted that often.
pub const KEPT: u64 = 64;

/// What one thread writes next, and where its groups stand.
#[derive(Debug)]
pub struct Stream {
    work: Work,
    first_group: u64,
    next: Vec<u64>,
    at: u64,
}

impl Stream {
    /// Of thread number `thread` of the row's.
    pub fn new(work: Work, thread: u64) -> Stream {
        let groups = (work.groups / work.threads).max(1);
        Stream { work, first_group: thread * groups + 1, next: vec![1; groups as usize], at: 0 }
    }

    /// The next write, into a buffer that is reused.
    pub fn next(&mut self, pieces: &mut Vec<Piece>) {
        pieces.clear();
        let groups = self.next.len() as u64;
        for _ in 0..self.work.span {
            let at = self.at % groups;
            self.at += 1;
            let next = &mut self.next[at as usize];
            let first = *next;
            *next += self.work.each;
            let crossed = (first - 1) / KEPT != (*next - 1) / KEPT;
            let compact_to = Some(first.saturating_sub(KEPT)).filter(|to| crossed && *to > 0);
            let (group, count) = (self.first_group + at, self.work.each);
            pieces.push(Piece { group, first, count, compact_to });
        }
    }
}

/// Entry data, half of it zeros, shared and not copied: what it costs to make it is not measured.
#[derive(Debug)]
pub struct Payload {
    pool: Bytes,
    size: usize,
    at: usize,
}

/// Different entries before they repeat.
const DIFFERENT: usize = 4096;

impl Payload {
    /// Of entries of `size` bytes.
    pub fn new(size: usize) -> Payload {
        let mut pool = vec![0; size * DIFFERENT];
        let mut x = 0x9e37_79b9_7f4a_7c15u64;
        for entry in pool.chunks_mut(size) {
            for byte in &mut entry[..size / 2] {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                *byte = (x >> 32) as u8;
            }
        }
        Payload { pool: pool.into(), size, at: 0 }
    }

    /// Bytes of an entry.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The next entry's data.
    pub fn entry(&mut self) -> Bytes {
        let from = self.at % DIFFERENT * self.size;
        self.at += 1;
        self.pool.slice(from..from + self.size)
    }
}
