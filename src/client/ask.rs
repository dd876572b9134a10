//! What nodes and operators ask of the directory, and the answers, as bytes: request kind 9, response kind 8.
//!
//! | question | bytes |
//! |---|---|
//! | 1 report | see [`report`](crate::codec::report); to the leader of region 1, from a store |
//! | 2 announce | likewise; from the leader of region 1, to a store |
//! | 3 cluster | |
//! | 4 locate | start key, how many at most |
//! | 5 members | |
//! | 6 was merged | region `u64` |
//! | 7 found | store `u64`, incarnation `u64`; from a store that is to found the cluster, to another |
//!
//! | answer | bytes |
//! |---|---|
//! | 1 reported | session `u64`, verdict |
//! | 2 cluster | see [`report`](crate::codec::report) |
//! | 3 located | number of regions, the regions |
//! | 4 members | an announcement, to the end |
//! | 5 record | the [record](crate::codec::directory), to the end |
//! | 6 was merged | `0` or `1` |
//! | 7 founds | incarnation `u64` |

use super::request::{BOUND_BYTES_MAX, REGIONS_MAX};
use crate::codec::directory::Directory;
use crate::codec::report::{Announcement, Cluster, RegionInfo, Report, Verdict};
use crate::codec::{Reader, Writer};
use crate::error::Result;
use crate::types::{RegionId, StoreId};
use bytes::Bytes;

/// A question about stores and regions.
#[derive(Clone, PartialEq, Debug)]
pub enum Ask {
    /// A store tells what it leads.
    Report(Report),
    /// The leader of region 1 says who reigns, and which stores there are.
    Announce(Announcement),
    /// Everything about the stores.
    Cluster,
    /// Regions, their leaders and sizes.
    Locate {
        /// From the one that owns this key on.
        start: Bytes,
        /// How many, at most.
        count: usize,
    },
    /// What was announced last. Any node answers for itself.
    Members,
    /// Whether the node knows that the region was merged into another one: see
    /// [`was_merged`](crate::region::merge::was_merged). Any node answers for itself.
    WasMerged(RegionId),
    /// A store asks another one to found the cluster with it, and with that directory of its.
    Found {
        /// Who asks.
        store: StoreId,
        /// Its directory.
        incarnation: u64,
    },
}

/// Its answer.
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    /// What became of a report.
    Reported {
        /// Who reigns now.
        session: u64,
        /// Whether it was taken.
        verdict: Verdict,
    },
    /// Everything about the stores.
    Cluster(Cluster),
    /// Regions, by range.
    Located(Vec<RegionInfo>),
    /// What was announced last.
    Members(Announcement),
    /// The record as it is after a change.
    Record(Directory),
    /// Whether a region was merged; `false`: nothing is known of it.
    WasMerged(bool),
    /// It founds the cluster with who asked, or has done so; this is its own directory.
    Founds {
        /// Its incarnation.
        incarnation: u64,
    },
}

impl Ask {
    /// Appends its bytes.
    pub fn encode(&self, out: &mut Writer<'_>) {
        match self {
            Ask::Report(report) => {
                out.u8(1);
                report.encode(out);
            }
            Ask::Announce(announcement) => {
                out.u8(2);
                announcement.encode(out);
            }
            Ask::Cluster => out.u8(3),
            Ask::Locate { start, count } => {
                out.u8(4);
                out.bytes(start);
                out.varint(*count as u64);
            }
            Ask::Members => out.u8(5),
            Ask::WasMerged(region) => {
                out.u8(6);
                out.u64(region.0);
            }
            Ask::Found { store, incarnation } => {
                out.u8(7);
                out.u64(store.0);
                out.u64(*incarnation);
            }
        }
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub fn decode(from: &mut Reader) -> Result<Ask> {
        Ok(match from.u8()? {
            1 => Ask::Report(Report::decode(from)?),
            2 => Ask::Announce(Announcement::decode(from)?),
            3 => Ask::Cluster,
            4 => Ask::Locate {
                start: from.bytes(BOUND_BYTES_MAX)?,
                count: from.varint()?.clamp(1, REGIONS_MAX as u64) as usize,
            },
            5 => Ask::Members,
            6 => Ask::WasMerged(RegionId(from.u64()?)),
            7 => Ask::Found { store: StoreId(from.u64()?), incarnation: from.u64()? },
            other => return Err(from.malformed(format_args!("question {other}"))),
        })
    }

    /// Whether only stores may say so.
    pub fn is_among_stores(&self) -> bool {
        matches!(self, Ask::Report(_) | Ask::Announce(_) | Ask::Found { .. })
    }
}

impl Answer {
    /// Appends its bytes.
    pub fn encode(&self, out: &mut Writer<'_>) {
        match self {
            Answer::Reported { session, verdict } => {
                out.u8(1);
                out.u64(*session);
                verdict.encode(out);
            }
            Answer::Cluster(cluster) => {
                out.u8(2);
                cluster.encode(out);
            }
            Answer::Located(regions) => {
                out.u8(3);
                out.varint(regions.len() as u64);
                regions.iter().for_each(|region| region.encode(out));
            }
            Answer::Members(announcement) => {
                out.u8(4);
                announcement.encode(out);
            }
            Answer::Record(directory) => {
                out.u8(5);
                out.raw(&directory.encode());
            }
            Answer::WasMerged(merged) => {
                out.u8(6);
                out.u8(u8::from(*merged));
            }
            Answer::Founds { incarnation } => {
                out.u8(7);
                out.u64(*incarnation);
            }
        }
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub fn decode(from: &mut Reader) -> Result<Answer> {
        Ok(match from.u8()? {
            1 => Answer::Reported { session: from.u64()?, verdict: Verdict::decode(from)? },
            2 => Answer::Cluster(Cluster::decode(from)?),
            3 => {
                let count = from.count(48, REGIONS_MAX)?;
                Answer::Located(
                    (0..count).map(|_| RegionInfo::decode(from)).collect::<Result<_>>()?,
                )
            }
            4 => Answer::Members(Announcement::decode(from)?),
            5 => Answer::Record(Directory::decode(&from.rest())?),
            6 => Answer::WasMerged(match from.u8()? {
                0 => false,
                1 => true,
                other => {
                    return Err(from.malformed(format_args!("neither merged nor not: {other}")));
                }
            }),
            7 => Answer::Founds { incarnation: from.u64()? },
            other => return Err(from.malformed(format_args!("answer {other}"))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::report::Extent;
    use crate::types::Region;
    use proptest::prelude::*;

    #[test]
    fn questions_and_answers_read_back() {
        let report = Report {
            store: StoreId(1),
            life: 2,
            number: 3,
            session: 4,
            extent: Extent::Whole,
            used_bytes: 5,
            capacity_bytes: 6,
            led: Vec::new(),
            gone: vec![(RegionId(7), 8)],
        };
        let members = Announcement { session: 9, leader: StoreId(2), ..Announcement::default() };
        for ask in [
            Ask::Report(report),
            Ask::Announce(members.clone()),
            Ask::Cluster,
            Ask::Locate { start: "k".into(), count: 7 },
            Ask::Members,
            Ask::WasMerged(RegionId(1 << 40)),
            Ask::Found { store: StoreId(3), incarnation: u64::MAX },
        ] {
            let mut out = Vec::new();
            ask.encode(&mut Writer::new(&mut out));
            let mut from = Reader::new("test", Bytes::from(out));
            assert_eq!(Ask::decode(&mut from).unwrap(), ask);
            from.finish().unwrap();
        }
        let region = RegionInfo { region: Region::default(), leader: None, bytes: 1 };
        for answer in [
            Answer::Reported { session: 1, verdict: Verdict::Again },
            Answer::Cluster(Cluster { regions: 9, ..Cluster::default() }),
            Answer::Located(vec![region]),
            Answer::Members(members),
            Answer::Record(Directory { version: 9, ..Directory::default() }),
            Answer::WasMerged(true),
            Answer::WasMerged(false),
            Answer::Founds { incarnation: 1 << 60 },
        ] {
            let mut out = Vec::new();
            answer.encode(&mut Writer::new(&mut out));
            let mut from = Reader::new("test", Bytes::from(out));
            assert_eq!(Answer::decode(&mut from).unwrap(), answer);
            from.finish().unwrap();
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = Ask::decode(&mut Reader::new("test", Bytes::from(bytes.clone())));
            let _ = Answer::decode(&mut Reader::new("test", Bytes::from(bytes)));
        }
    }
}
