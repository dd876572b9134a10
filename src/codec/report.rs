//! What stores tell the leader of region 1 about the regions that they lead, and what it tells them and others: soft
//! state, kept in memory only. Region 1's record of the stores is another thing: [`directory`](super::directory).
//!
//! All numbers are varints but those drawn at random (8 bytes, little-endian).
//!
//! | what | bytes |
//! |---|---|
//! | report | store, life `u64`, number, session `u64`, extent (one byte: `0` difference, `1` whole), used bytes, capacity, number of regions, each: region (its length and [its bytes](super::region)), term, bytes, calm (0 = no, else bytes + 1); number of those no longer led, each: region, term |
//! | reported | session `u64`, `0` taken or `1` from the start, please |
//! | announcement | session `u64`, store, [record](super::directory) to the end |
//! | region | region (its length and its bytes), leader (0 = unknown), bytes |
//! | cluster | record (its length and its bytes), number of stores, each: id, reachable (one byte), replicas, leaders, used bytes, capacity; regions, regions with a leader, number of remarks, each: text |

use super::directory::{Directory, STORES_MAX};
use super::{Reader, Writer, region};
use crate::error::Result;
use crate::types::{LogPosition, Region, RegionId, StoreId};
use bytes::Bytes;

/// Regions of one report: more wait for the next one.
pub const REPORT_MAX: usize = 1 << 14;
const REGION_BYTES_MAX: usize = 128 << 10;
/// Remarks of one answer.
pub const REMARKS_MAX: usize = 16;
const REMARK_BYTES_MAX: usize = 1 << 10;

/// Whether a report continues the one before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// What has changed since what was acknowledged.
    Difference,
    /// Forget what I said: this is where I begin.
    Whole,
}

/// A region that the reporting store leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Led {
    /// Its shape.
    pub region: Region,
    /// The term of the leadership.
    pub term: u64,
    /// Bytes of its keys and values, about; 0: not known.
    pub bytes: u64,
    /// It takes at most so many bytes, and so little is done with it, for so long, that it may be merged into a neighbour;
    /// `None`: it is not so, or nobody knows.
    pub calm: Option<u64>,
}

/// What a store tells the leader of region 1: the regions that it leads, as far as they are news.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Who reports.
    pub store: StoreId,
    /// Drawn at each start of the reporter.
    pub life: u64,
    /// Grows with each report of that life.
    pub number: u64,
    /// To which reign of region 1's leader it is addressed.
    pub session: u64,
    /// Whether it continues the report before.
    pub extent: Extent,
    /// Bytes that the store takes on its disk.
    pub used_bytes: u64,
    /// Bytes that it could take; 0: not known.
    pub capacity_bytes: u64,
    /// Regions that it leads, new or changed.
    pub led: Vec<Led>,
    /// Regions that it leads no more, and the term in which it did.
    pub gone: Vec<(RegionId, u64)>,
}

/// What is to follow a report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It was taken in.
    Taken,
    /// It was not: begin with a whole one.
    Again,
}

/// What the leader of region 1 tells all stores when its reign begins and when the record changes.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Announcement {
    /// The reign: reports are addressed to it.
    pub session: u64,
    /// Who reigns.
    pub leader: StoreId,
    /// The record of the stores.
    pub directory: Directory,
}

/// What the directory knows of a region.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RegionInfo {
    /// Its shape.
    pub region: Region,
    /// Which store leads it, as last reported.
    pub leader: Option<StoreId>,
    /// Bytes of its keys and values, about; 0: not known.
    pub bytes: u64,
}

/// What is known of a store beside its record.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct StoreLoad {
    /// Whether the leader of region 1 gets through to it, as far as it knows.
    pub reachable: bool,
    /// Replicas on it, of the regions that have been reported.
    pub replicas: u64,
    /// Regions that it leads.
    pub leaders: u64,
    /// Bytes that it takes on its disk; 0: not known.
    pub used_bytes: u64,
    /// Bytes that it could take; 0: not known.
    pub capacity_bytes: u64,
}

/// The whole cluster, as the leader of region 1 knows it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Cluster {
    /// The record of the stores.
    pub directory: Directory,
    /// What is known beside it, of each store that has not left.
    pub loads: std::collections::BTreeMap<StoreId, StoreLoad>,
    /// Regions that have been reported.
    pub regions: u64,
    /// Those of them that have a leader.
    pub led: u64,
    /// What stands in the way of what is to be done, in words; a few of many.
    pub remarks: Vec<String>,
}

fn write_region(region: &Region, out: &mut Writer<'_>) {
    out.bytes(&region::encode(region, LogPosition::default()));
}

fn read_region(from: &mut Reader) -> Result<Region> {
    Ok(region::decode(&from.bytes(REGION_BYTES_MAX)?)?.0)
}

impl Report {
    /// Appends its bytes.
    pub fn encode(&self, out: &mut Writer<'_>) {
        out.varint(self.store.0);
        out.u64(self.life);
        out.varint(self.number);
        out.u64(self.session);
        out.u8(u8::from(self.extent == Extent::Whole));
        out.varint(self.used_bytes);
        out.varint(self.capacity_bytes);
        out.varint(self.led.len() as u64);
        for led in &self.led {
            write_region(&led.region, out);
            out.varint(led.term);
            out.varint(led.bytes);
            out.varint(led.calm.map_or(0, |bytes| bytes.saturating_add(1)));
        }
        out.varint(self.gone.len() as u64);
        for (region, term) in &self.gone {
            out.varint(region.0);
            out.varint(*term);
        }
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub fn decode(from: &mut Reader) -> Result<Report> {
        let (store, life) = (StoreId(from.varint()?), from.u64()?);
        let (number, session) = (from.varint()?, from.u64()?);
        let extent = match from.u8()? {
            0 => Extent::Difference,
            1 => Extent::Whole,
            other => return Err(from.malformed(format_args!("extent {other}"))),
        };
        let (used_bytes, capacity_bytes) = (from.varint()?, from.varint()?);
        let count = from.count(48, REPORT_MAX)?;
        let mut led = Vec::with_capacity(count);
        for _ in 0..count {
            let region = read_region(from)?;
            let (term, bytes, calm) = (from.varint()?, from.varint()?, from.varint()?);
            led.push(Led { region, term, bytes, calm: calm.checked_sub(1) });
        }
        let count = from.count(2, REPORT_MAX)?;
        let one = |from: &mut Reader| Ok((RegionId(from.varint()?), from.varint()?));
        let gone = (0..count).map(|_| one(from)).collect::<Result<_>>()?;
        Ok(Report { store, life, number, session, extent, used_bytes, capacity_bytes, led, gone })
    }
}

impl Verdict {
    /// Its byte.
    pub fn encode(self, out: &mut Writer<'_>) {
        out.u8(u8::from(self == Verdict::Again));
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub fn decode(from: &mut Reader) -> Result<Verdict> {
        Ok(match from.u8()? {
            0 => Verdict::Taken,
            1 => Verdict::Again,
            other => return Err(from.malformed(format_args!("verdict {other}"))),
        })
    }
}

impl Announcement {
    /// Appends its bytes.
    pub fn encode(&self, out: &mut Writer<'_>) {
        out.u64(self.session);
        out.varint(self.leader.0);
        out.raw(&self.directory.encode());
    }

    /// Reads what [`encode`](Self::encode) wrote, to the end.
    pub fn decode(from: &mut Reader) -> Result<Announcement> {
        let (session, leader) = (from.u64()?, StoreId(from.varint()?));
        Ok(Announcement { session, leader, directory: Directory::decode(&from.rest())? })
    }
}

impl RegionInfo {
    /// Appends its bytes.
    pub fn encode(&self, out: &mut Writer<'_>) {
        write_region(&self.region, out);
        out.varint(self.leader.map_or(0, |store| store.0));
        out.varint(self.bytes);
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub fn decode(from: &mut Reader) -> Result<RegionInfo> {
        let region = read_region(from)?;
        let leader = Some(StoreId(from.varint()?)).filter(|store| store.0 != 0);
        Ok(RegionInfo { region, leader, bytes: from.varint()? })
    }
}

impl Cluster {
    /// Appends its bytes.
    pub fn encode(&self, out: &mut Writer<'_>) {
        out.bytes(&self.directory.encode());
        out.varint(self.loads.len() as u64);
        for (store, load) in &self.loads {
            out.varint(store.0);
            out.u8(u8::from(load.reachable));
            for number in [load.replicas, load.leaders, load.used_bytes, load.capacity_bytes] {
                out.varint(number);
            }
        }
        out.varint(self.regions);
        out.varint(self.led);
        let remarks = &self.remarks[..self.remarks.len().min(REMARKS_MAX)];
        out.varint(remarks.len() as u64);
        for remark in remarks {
            let short: String = remark.chars().take(REMARK_BYTES_MAX / 4).collect();
            out.bytes(short.as_bytes());
        }
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub fn decode(from: &mut Reader) -> Result<Cluster> {
        let whole: Bytes = from.bytes(usize::MAX)?;
        let mut cluster = Cluster { directory: Directory::decode(&whole)?, ..Cluster::default() };
        for _ in 0..from.count(6, STORES_MAX)? {
            let store = StoreId(from.varint()?);
            let load = StoreLoad {
                reachable: from.u8()? != 0,
                replicas: from.varint()?,
                leaders: from.varint()?,
                used_bytes: from.varint()?,
                capacity_bytes: from.varint()?,
            };
            cluster.loads.insert(store, load);
        }
        cluster.regions = from.varint()?;
        cluster.led = from.varint()?;
        let count = from.count(1, REMARKS_MAX)?;
        let text = |_| from.text(REMARK_BYTES_MAX);
        cluster.remarks = (0..count).map(text).collect::<Result<_>>()?;
        Ok(cluster)
    }
}

#[cfg(test)]
mod tests {
    use super::super::directory::{StoreChange, StoreRecord};
    use super::*;
    use crate::types::KeyRange;

    fn region(id: u64) -> Region {
        Region { id: RegionId(id), range: KeyRange::new("a", "b"), ..Region::default() }
    }

    /// What was written reads back, and no part of it makes the reader panic.
    fn both_ways<T: PartialEq + std::fmt::Debug>(
        what: &T,
        encode: impl Fn(&T, &mut Writer<'_>),
        decode: impl Fn(&mut Reader) -> Result<T>,
    ) {
        let mut out = Vec::new();
        encode(what, &mut Writer::new(&mut out));
        let bytes = Bytes::from(out);
        let mut from = Reader::new("test", bytes.clone());
        assert_eq!(decode(&mut from).unwrap(), *what);
        from.finish().unwrap();
        for cut in 0..bytes.len() {
            let _ = decode(&mut Reader::new("test", bytes.slice(..cut)));
        }
    }

    #[test]
    fn all_of_it_reads_back() {
        let report = Report {
            store: StoreId(3),
            life: u64::MAX,
            number: 9,
            session: 5,
            extent: Extent::Whole,
            used_bytes: 1 << 40,
            capacity_bytes: 1 << 41,
            led: vec![
                Led { region: region(7), term: 300, bytes: 1 << 20, calm: None },
                Led { region: region(9), term: 6, bytes: 0, calm: Some(0) },
            ],
            gone: vec![(RegionId(8), 6)],
        };
        both_ways(&report, Report::encode, Report::decode);
        let difference = Report { extent: Extent::Difference, led: Vec::new(), ..report };
        both_ways(&difference, Report::encode, Report::decode);
        for verdict in [Verdict::Taken, Verdict::Again] {
            both_ways(&verdict, |v, out| v.encode(out), Verdict::decode);
        }
        let mut directory = Directory::default();
        let record = StoreRecord { store: StoreId(3), ..StoreRecord::default() };
        directory.change(&StoreChange::Register { record, replicas: 3 }).unwrap();
        let announcement = Announcement { session: 5, leader: StoreId(3), directory };
        both_ways(&announcement, Announcement::encode, Announcement::decode);
        for leader in [None, Some(StoreId(4))] {
            let info = RegionInfo { region: region(7), leader, bytes: 77 };
            both_ways(&info, RegionInfo::encode, RegionInfo::decode);
        }
        let load = StoreLoad { reachable: true, replicas: 3, ..StoreLoad::default() };
        let cluster = Cluster {
            directory: announcement.directory,
            loads: [(StoreId(3), load)].into(),
            regions: 9,
            led: 8,
            remarks: vec!["nowhere to go".to_owned()],
        };
        both_ways(&cluster, Cluster::encode, Cluster::decode);
    }
}
