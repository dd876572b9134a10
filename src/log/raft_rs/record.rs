//! The state record of a group: hard state and configuration.

use crate::error::{Error, Result};
use ::raft::eraftpb::{ConfState, HardState};
use bytes::{BufMut, Bytes, BytesMut};

const VERSION: u8 = 1;
const AUTO_LEAVE: u8 = 1;
const FIXED: usize = 50;

/// What the record says.
///
/// - `hard.commit` is at least `conf_index`, and at least the log's truncated index.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Record {
    pub hard: HardState,
    pub conf: ConfState,
    /// The entry that made the configuration what it is.
    pub conf_index: u64,
}

impl Record {
    pub fn encode(&self) -> Bytes {
        let conf = &self.conf;
        let lists = [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next];
        let ids: usize = lists.iter().map(|list| list.len()).sum();
        let mut out = BytesMut::with_capacity(FIXED + 8 * ids);
        out.put_u8(VERSION);
        out.put_u8(if conf.auto_leave { AUTO_LEAVE } else { 0 });
        for number in [self.hard.term, self.hard.vote, self.hard.commit, self.conf_index] {
            out.put_u64_le(number);
        }
        for list in lists {
            out.put_u32_le(list.len() as u32);
        }
        for id in lists.into_iter().flatten() {
            out.put_u64_le(*id);
        }
        out.freeze()
    }

    pub fn decode(bytes: &[u8]) -> Result<Record> {
        let malformed = |detail: String| Error::malformed("raft state record", detail);
        let Some((fixed, ids)) = bytes.split_first_chunk::<FIXED>() else {
            return Err(malformed(format!("{} bytes", bytes.len())));
        };
        if fixed[0] != VERSION || fixed[1] & !AUTO_LEAVE != 0 {
            return Err(malformed(format!("version {}, flags {}", fixed[0], fixed[1])));
        }
        let number = |at: usize| fixed[at..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
        let count = |n: usize| {
            fixed[34 + 4 * n..].first_chunk().map_or(0, |b| u64::from(u32::from_le_bytes(*b)))
        };
        let counts = [count(0), count(1), count(2), count(3)];
        if counts.iter().sum::<u64>() * 8 != ids.len() as u64 {
            return Err(malformed(format!("{} bytes for {counts:?} ids", ids.len())));
        }
        let mut ids =
            ids.chunks_exact(8).map(|b| b.first_chunk().map_or(0, |b| u64::from_le_bytes(*b)));
        let mut list = |n: usize| ids.by_ref().take(counts[n] as usize).collect::<Vec<u64>>();
        let conf = ConfState {
            voters: list(0),
            learners: list(1),
            voters_outgoing: list(2),
            learners_next: list(3),
            auto_leave: fixed[1] == AUTO_LEAVE,
            ..Default::default()
        };
        let hard = HardState {
            term: number(2),
            vote: number(10),
            commit: number(18),
            ..Default::default()
        };
        Ok(Record { hard, conf, conf_index: number(26) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let hard = HardState { term: 2, vote: 3, commit: 0x1122, ..Default::default() };
        let conf = ConfState {
            voters: vec![1, 2, 3],
            learners: vec![4],
            voters_outgoing: vec![1, 9],
            learners_next: vec![9],
            auto_leave: true,
            ..Default::default()
        };
        Record { hard, conf, conf_index: 17 }
    }

    #[test]
    fn bytes_as_the_page_says() {
        let bytes = record().encode();
        assert_eq!(bytes.len(), 50 + 7 * 8);
        assert_eq!(bytes[..2], [1, 1]);
        assert_eq!(bytes[18..26], [0x22, 0x11, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[34..50], [3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(Record::decode(&bytes).unwrap(), record());
        let empty = Record::default();
        assert_eq!(Record::decode(&empty.encode()).unwrap(), empty);
    }

    #[test]
    fn anything_else_is_refused() {
        let good = record().encode();
        for len in 0..good.len() {
            assert!(Record::decode(&good[..len]).is_err(), "{len}");
        }
        for (at, byte) in [(0, 2), (1, 2), (34, 4), (37, 255), (46, 0)] {
            let mut bad = good.to_vec();
            bad[at] = byte;
            assert!(Record::decode(&bad).is_err(), "{at}");
        }
    }
}
