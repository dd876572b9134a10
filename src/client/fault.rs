//! Errors on the wire. What a write may have done ([`Error::outcome`]) survives the trip.
//!
//! `kind u8`, then by kind: 1 not leader (region, store or 0), 2 epoch (count, regions), 3 region not
//! found, 4 busy (text), 5 timed out (ms, text), 6 ambiguous (text), 7 disk full (text), 8 quarantined
//! (region, text), 9 invalid argument (text), 10 malformed (text), 11 identity (text), 12 stopped (text).
//! Numbers and lengths are varints.

use crate::codec::{Reader, Writer, region};
use crate::error::{Error, Outcome, Result};
use crate::types::{LogPosition, RegionId, StoreId};

const TEXT_MAX: usize = 4096;
const REGIONS_MAX: usize = 1024;
const REGION_BYTES_MAX: usize = 128 << 10;

/// Writes an error.
pub fn encode(error: &Error, out: &mut Writer<'_>) {
    let text = |out: &mut Writer<'_>, kind: u8, text: &str| {
        out.u8(kind);
        let cut = (0..=text.len().min(TEXT_MAX)).rev().find(|at| text.is_char_boundary(*at));
        out.bytes(&text.as_bytes()[..cut.unwrap_or(0)]);
    };
    match error {
        Error::NotLeader { region, leader } => {
            out.u8(1);
            out.varint(region.0);
            out.varint(leader.map_or(0, |store| store.0));
        }
        Error::EpochNotMatch { current } => {
            out.u8(2);
            let current = &current[..current.len().min(REGIONS_MAX)];
            out.varint(current.len() as u64);
            for one in current {
                out.bytes(&region::encode(one, LogPosition::default()));
            }
        }
        Error::RegionNotFound(region) => {
            out.u8(3);
            out.varint(region.0);
        }
        Error::Busy { what } => text(out, 4, what),
        Error::Timeout { after_ms, what } => {
            out.u8(5);
            out.varint(*after_ms);
            out.bytes(what.as_bytes());
        }
        Error::Ambiguous { what } => text(out, 6, what),
        Error::DiskFull { path } => text(out, 7, &path.display().to_string()),
        Error::Quarantined { region, reason } => {
            out.u8(8);
            out.varint(region.0);
            out.bytes(reason.chars().take(TEXT_MAX / 4).collect::<String>().as_bytes());
        }
        Error::InvalidArgument(why) => text(out, 9, why),
        Error::Malformed { what, detail } => text(out, 10, &format!("{what}: {detail}")),
        Error::Identity(why) => text(out, 11, why),
        Error::Stopped { reason } => text(out, 12, reason),
        other => text(out, 12, &other.to_string()),
    }
}

/// Reads an error. The static words of some of them become "another node".
pub fn decode(from: &mut Reader) -> Result<Error> {
    Ok(match from.u8()? {
        1 => Error::NotLeader {
            region: RegionId(from.varint()?),
            leader: Some(StoreId(from.varint()?)).filter(|store| store.0 != 0),
        },
        2 => {
            let count = from.count(1, REGIONS_MAX)?;
            let mut current = Vec::with_capacity(count);
            for _ in 0..count {
                current.push(region::decode(&from.bytes(REGION_BYTES_MAX)?)?.0);
            }
            Error::EpochNotMatch { current }
        }
        3 => Error::RegionNotFound(RegionId(from.varint()?)),
        4 => {
            from.text(TEXT_MAX)?;
            Error::Busy { what: "another node" }
        }
        5 => {
            let after_ms = from.varint()?;
            from.text(TEXT_MAX)?;
            Error::Timeout { after_ms, what: "another node" }
        }
        6 => {
            from.text(TEXT_MAX)?;
            Error::Ambiguous { what: "another node could not tell" }
        }
        7 => Error::DiskFull { path: from.text(TEXT_MAX)?.into() },
        8 => {
            let region = RegionId(from.varint()?);
            Error::Quarantined { region, reason: from.text(TEXT_MAX)? }
        }
        9 => Error::InvalidArgument(from.text(TEXT_MAX)?),
        10 => Error::malformed("request (another node says)", from.text(TEXT_MAX)?),
        11 => Error::Identity(from.text(TEXT_MAX)?),
        12 => Error::Stopped { reason: from.text(TEXT_MAX)? },
        kind => return Err(from.malformed(format_args!("unknown error kind {kind}"))),
    })
}

/// The error of several parts of one write, if any failed: when something was applied or may have been,
/// the whole is ambiguous.
pub fn of_parts(errors: &[Error], applied: usize) -> Option<Error> {
    let first = errors.first()?;
    if applied == 0 && errors.iter().all(|error| error.outcome() == Outcome::NotApplied) {
        return Some(first.clone());
    }
    let unknown = errors.iter().find(|error| error.outcome() == Outcome::Unknown);
    Some(match unknown {
        Some(error) if applied == 0 => error.clone(),
        _ => Error::Ambiguous { what: "a batch over several regions was applied in part" },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Epoch, KeyRange, Region};
    use bytes::Bytes;

    #[test]
    fn outcomes_survive_the_wire() {
        let region = Region {
            id: RegionId(7),
            range: KeyRange::new("a", "b"),
            epoch: Epoch { conf_ver: 1, version: 2 },
            peers: Vec::new(),
        };
        let errors = [
            Error::NotLeader { region: RegionId(7), leader: Some(StoreId(2)) },
            Error::NotLeader { region: RegionId(7), leader: None },
            Error::EpochNotMatch { current: vec![region] },
            Error::RegionNotFound(RegionId(1)),
            Error::Busy { what: "x" },
            Error::Timeout { after_ms: 9, what: "x" },
            Error::Ambiguous { what: "x" },
            Error::DiskFull { path: "p".into() },
            Error::Quarantined { region: RegionId(1), reason: "rot".into() },
            Error::InvalidArgument("no".into()),
            Error::malformed("w", "d"),
            Error::Identity("i".into()),
            Error::Stopped { reason: "ä".repeat(9000) },
            Error::Corruption { path: "p".into(), offset: 1, detail: "d".into() },
        ];
        for error in errors {
            let mut out = Vec::new();
            encode(&error, &mut Writer::new(&mut out));
            let mut reader = Reader::new("error", Bytes::from(out));
            let back = decode(&mut reader).unwrap();
            reader.finish().unwrap();
            assert_eq!(back.outcome(), error.outcome(), "{error}");
            assert_eq!(back.is_retryable(), error.is_retryable(), "{error}");
        }
    }

    #[test]
    fn a_partly_applied_batch_is_ambiguous() {
        let busy = || Error::Busy { what: "x" };
        let lost = || Error::Ambiguous { what: "x" };
        assert!(of_parts(&[], 2).is_none());
        assert_eq!(of_parts(&[busy(), busy()], 0).unwrap().outcome(), Outcome::NotApplied);
        assert_eq!(of_parts(&[busy()], 1).unwrap().outcome(), Outcome::Unknown);
        assert_eq!(of_parts(&[busy(), lost()], 0).unwrap().outcome(), Outcome::Unknown);
    }
}
