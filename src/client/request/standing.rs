//! Where a node and its replicas stand, as bytes: the answer to a request for the status.
//!
//! | what | bytes |
//! |---|---|
//! | status | store, number of regions, each as below, counters, stages |
//! | region | its length and [its bytes](crate::codec::region), peer, flags `u8` (1 leads, 2 asleep, 4 quarantined, 8 frozen, 16 changing), leader (0 = unknown), term, committed, applied, flushed, first index, last index, log bytes, bytes; if quarantined: why (text); if frozen: target, its conf_ver and version, index and term of the freezing entry, `0` or `1` (stands still); the region waited for (0 = none); how many former replicas there are, number of those named, each: region, peer, store |
//!
//! Numbers and lengths are varints unless said otherwise.

use super::{NodeStatus, NodeWork};
use crate::codec::{Reader, Writer, region};
use crate::driver::{SnapshotStats, StageStats};
use crate::error::Result;
use crate::store::{FORMER_MAX, Frozen, RegionStatus, Unsettled};
use crate::types::{Departed, Epoch, LogPosition, PeerId, Region, RegionId, StoreId};

/// Regions of one answer, at most.
const REGIONS_MAX: usize = 1 << 20;
/// Bytes of one region's part, at least.
const REGION_LEAST: usize = 64;
/// Bytes of a region's shape, at most.
const SHAPE_BYTES_MAX: usize = 128 << 10;
/// Letters of the reason for a fence, at most.
const REASON_MAX: usize = 1000;

const LEADS: u8 = 1;
const ASLEEP: u8 = 2;
const QUARANTINED: u8 = 4;
const FROZEN: u8 = 8;
const CHANGING: u8 = 16;

/// Appends a status.
pub(super) fn write(status: &NodeStatus, out: &mut Writer<'_>) {
    out.varint(status.store.0);
    out.varint(status.regions.len() as u64);
    for region in &status.regions {
        write_region(region, out);
    }
    let work = &status.work;
    for number in [work.log_entries, work.log_syncs, work.log_bytes, work.flushes, work.table_bytes]
    {
        out.varint(number);
    }
    work.snapshots.figures().into_iter().for_each(|number| out.varint(number));
    status.stages.figures().into_iter().for_each(|number| out.varint(number));
}

/// Reads what [`write`] wrote.
pub(super) fn read(from: &mut Reader) -> Result<NodeStatus> {
    let store = StoreId(from.varint()?);
    let count = from.count(REGION_LEAST, REGIONS_MAX)?;
    let regions = (0..count).map(|_| read_region(from)).collect::<Result<_>>()?;
    let work = NodeWork {
        log_entries: from.varint()?,
        log_syncs: from.varint()?,
        log_bytes: from.varint()?,
        flushes: from.varint()?,
        table_bytes: from.varint()?,
        snapshots: SnapshotStats::read(|| from.varint())?,
    };
    let stages = StageStats::read(|| from.varint())?;
    Ok(NodeStatus { store, regions, work, stages })
}

fn write_region(status: &RegionStatus, out: &mut Writer<'_>) {
    out.bytes(&region::encode(&status.region, LogPosition::default()));
    out.varint(status.peer.0);
    let flags = [
        (status.leads, LEADS),
        (status.asleep, ASLEEP),
        (status.quarantined.is_some(), QUARANTINED),
        (status.unsettled.frozen.is_some(), FROZEN),
        (status.unsettled.changing, CHANGING),
    ];
    out.u8(flags.iter().filter(|(set, _)| *set).map(|(_, flag)| flag).sum());
    for number in [
        status.leader.map_or(0, |peer| peer.0),
        status.term,
        status.committed,
        status.applied,
        status.flushed,
        status.first_index,
        status.last_index,
        status.log_bytes,
        status.bytes,
    ] {
        out.varint(number);
    }
    if let Some(reason) = &status.quarantined {
        out.bytes(reason.chars().take(REASON_MAX).collect::<String>().as_bytes());
    }
    write_unsettled(&status.unsettled, out);
}

fn write_unsettled(unsettled: &Unsettled, out: &mut Writer<'_>) {
    if let Some(Frozen { target, epoch, at, stands_still }) = unsettled.frozen {
        for number in [target.0, epoch.conf_ver, epoch.version, at.index, at.term] {
            out.varint(number);
        }
        out.u8(u8::from(stands_still));
    }
    out.varint(unsettled.waits_for.map_or(0, |region| region.0));
    out.varint(unsettled.formers);
    let named = &unsettled.former[..unsettled.former.len().min(FORMER_MAX)];
    out.varint(named.len() as u64);
    for gone in named {
        for number in [gone.region.0, gone.id.0, gone.store.0] {
            out.varint(number);
        }
    }
}

fn read_region(from: &mut Reader) -> Result<RegionStatus> {
    let region: Region = region::decode(&from.bytes(SHAPE_BYTES_MAX)?)?.0;
    let peer = PeerId(from.varint()?);
    let flags = from.u8()?;
    Ok(RegionStatus {
        region,
        peer,
        leads: flags & LEADS != 0,
        asleep: flags & ASLEEP != 0,
        leader: Some(PeerId(from.varint()?)).filter(|peer| peer.0 != 0),
        term: from.varint()?,
        committed: from.varint()?,
        applied: from.varint()?,
        flushed: from.varint()?,
        first_index: from.varint()?,
        last_index: from.varint()?,
        log_bytes: from.varint()?,
        bytes: from.varint()?,
        quarantined: match flags & QUARANTINED {
            0 => None,
            _ => Some(from.text(REASON_MAX * 4)?),
        },
        unsettled: read_unsettled(flags, from)?,
    })
}

fn read_unsettled(flags: u8, from: &mut Reader) -> Result<Unsettled> {
    let frozen = match flags & FROZEN {
        0 => None,
        _ => Some(Frozen {
            target: RegionId(from.varint()?),
            epoch: Epoch { conf_ver: from.varint()?, version: from.varint()? },
            at: LogPosition { index: from.varint()?, term: from.varint()? },
            stands_still: from.u8()? != 0,
        }),
    };
    let waits_for = Some(RegionId(from.varint()?)).filter(|region| region.0 != 0);
    let formers = from.varint()?;
    let count = from.count(3, FORMER_MAX)?;
    let mut former = Vec::with_capacity(count);
    for _ in 0..count {
        former.push(Departed {
            region: RegionId(from.varint()?),
            id: PeerId(from.varint()?),
            store: StoreId(from.varint()?),
        });
    }
    Ok(Unsettled { changing: flags & CHANGING != 0, frozen, waits_for, formers, former })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{KeyRange, Peer, Role};
    use bytes::Bytes;

    fn plain() -> RegionStatus {
        RegionStatus {
            region: Region {
                id: RegionId(3),
                range: KeyRange::default(),
                epoch: Epoch { conf_ver: 1, version: 1 },
                peers: vec![],
            },
            peer: PeerId(1),
            leads: false,
            leader: None,
            term: 0,
            committed: 0,
            applied: 0,
            flushed: 0,
            first_index: 0,
            last_index: 0,
            log_bytes: 0,
            bytes: 0,
            quarantined: None,
            asleep: false,
            unsettled: Unsettled::default(),
        }
    }

    fn gone(id: u64) -> Departed {
        Departed { region: RegionId(9), id: PeerId(id), store: StoreId(1 << 40) }
    }

    fn bytes_of(regions: Vec<RegionStatus>) -> Bytes {
        let (work, stages) = Default::default();
        let status = NodeStatus { store: StoreId(2), regions, work, stages };
        let mut bytes = Vec::new();
        write(&status, &mut Writer::new(&mut bytes));
        Bytes::from(bytes)
    }

    fn parsed(bytes: Bytes) -> Result<Vec<RegionStatus>> {
        let mut from = Reader::new("status", bytes);
        let status = read(&mut from)?;
        from.finish()?;
        Ok(status.regions)
    }

    #[test]
    fn what_is_not_settled_survives_the_wire() {
        let frozen = Frozen {
            target: RegionId(4),
            epoch: Epoch { conf_ver: 7, version: 300 },
            at: LogPosition { index: 1 << 30, term: 8 },
            stands_still: true,
        };
        let peer = Peer { id: PeerId(1), store: StoreId(1), role: Role::Learner };
        let all = Unsettled {
            changing: true,
            frozen: Some(frozen),
            waits_for: Some(RegionId(5)),
            formers: 1000,
            former: (0..FORMER_MAX as u64).map(gone).collect(),
        };
        let mut full = RegionStatus { unsettled: all, leads: true, asleep: true, ..plain() };
        full.region.peers.push(peer);
        assert_eq!((full.role(), plain().role()), (Some(Role::Learner), None));
        let still = Frozen { stands_still: false, ..frozen };
        let frozen = RegionStatus {
            unsettled: Unsettled { frozen: Some(still), ..Unsettled::default() },
            ..plain()
        };
        let one = Unsettled { formers: 1, former: vec![gone(7)], ..Unsettled::default() };
        let one = RegionStatus { unsettled: one, quarantined: Some("rot".into()), ..plain() };
        let regions = vec![full, plain(), frozen, one];
        assert_eq!(parsed(bytes_of(regions.clone())).unwrap(), regions);
        let bytes = bytes_of(regions);
        for cut in 0..bytes.len() {
            assert!(parsed(bytes.slice(..cut)).is_err(), "cut at {cut}");
        }
    }

    /// Whoever connects may say how many there are: each list has a bound of its own, and no count is believed for which the
    /// bytes that follow have no room.
    #[test]
    fn counts_of_a_hostile_status_are_refused() {
        let none = bytes_of(vec![]);
        for count in [1u64, 1 << 20, u64::MAX] {
            let mut bytes = Vec::new();
            let mut out = Writer::new(&mut bytes);
            out.varint(2);
            out.varint(count);
            out.raw(&none[2..]);
            assert!(parsed(bytes.into()).is_err(), "{count} regions");
        }
        // One former replica more than a status names; it would fit.
        let many = RegionStatus {
            unsettled: Unsettled {
                former: (0..2 * FORMER_MAX as u64).map(gone).collect(),
                ..Unsettled::default()
            },
            ..plain()
        };
        let written = parsed(bytes_of(vec![many])).unwrap();
        assert_eq!(written[0].unsettled.former.len(), FORMER_MAX, "no more are written");
        for (count, fits) in [(FORMER_MAX, true), (FORMER_MAX + 1, false), (1 << 60, false)] {
            let mut bytes = Vec::new();
            let mut out = Writer::new(&mut bytes);
            out.varint(0);
            out.varint(9);
            out.varint(count as u64);
            (0..3 * (FORMER_MAX + 1)).for_each(|_| out.varint(1));
            let read = read_unsettled(0, &mut Reader::new("status", bytes.into()));
            assert_eq!(read.is_ok(), fits, "{count} former replicas");
        }
        let least = bytes_of(vec![plain()]).len() - none.len();
        assert!(least >= REGION_LEAST, "{least}: more regions than are read would fit");
    }
}
