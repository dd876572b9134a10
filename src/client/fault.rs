//! Errors on the wire. What a write may have done ([`Error::outcome`]) survives the trip.
//!
//! `kind u8`, then by kind: 1 not leader (region, store or 0), 2 epoch (count, regions), 3 region not
//! found, 4 busy (text), 5 timed out (ms, text), 6 ambiguous (text), 7 disk full (text), 8 quarantined
//! (region, text), 9 invalid argument (text), 10 malformed (text), 11 identity (text), 12 stopped (text),
//! 13 corruption (path, offset, text). Numbers and lengths are varints.

use super::request::BOUND_BYTES_MAX;
use crate::codec::{Reader, Writer, region};
use crate::error::{Error, Outcome, Result};
use crate::types::{LogPosition, RegionId, StoreId};

const TEXT_MAX: usize = 4096;
const REGIONS_MAX: usize = 1024;
const REGION_BYTES_MAX: usize = 128 << 10;

/// The texts of errors whose text is static: what another node says is looked up here, so that "busy" keeps
/// saying with what. A test compares the list with the sources.
const BUSY: [&str; 41] = [
    "a connection",
    "a former replica that is not known to be gone",
    "a learner that has not caught up",
    "a node cannot be reached",
    "a replica that is behind",
    "a replica that is behind, or out of reach",
    "a snapshot that was called off",
    "a store that has not met all founders",
    "a store that is draining or has left",
    "a store that is not on record",
    "another change of the region's shape",
    "another node",
    "answers not being read",
    "apply queue",
    "bytes being received",
    "every node",
    "former replicas that are not known to be gone",
    "leadership is to go to another store",
    "live replicas: too few would be left to agree",
    "log segments",
    "log writer",
    "no replica took the request in time",
    "read workers",
    "region's proposals",
    "region's uncommitted entries",
    "region, far above its size: it is about to be cut",
    "region, frozen: it is being merged",
    "regions that have not been reported yet",
    "requests with other nodes",
    "restoring a snapshot",
    "snapshots being received",
    "state store (flush is behind)",
    "store inbox",
    "store inbox (reads)",
    "the client's memory",
    "the connection is closed or full: nothing was sent",
    "the other side has no room",
    "the other store is out of reach",
    "the other store is out of reach or its queue is full",
    "the slot: it has lapsed",
    "waiting callers",
];
const TIMEOUT: [&str; 8] = [
    "a connection",
    "a node's answer",
    "a write",
    "another node",
    "another node's answer",
    "read index",
    "the other side heard nothing",
    "the region's answer",
];
const AMBIGUOUS: [&str; 10] = [
    "a batch over several regions was applied in part",
    "a merge that is under way",
    "an answer of another kind than the request",
    "it was applied, but its answer is too large to be sent",
    "overtaken by a snapshot",
    "the answer does not parse",
    "the connection broke",
    "the connection broke before the answer",
    "the replica was fenced off",
    "the replica was removed",
];

/// The static text equal to what another node said, or `otherwise`: another version may know more texts.
fn known(said: &str, texts: &[&'static str], otherwise: &'static str) -> &'static str {
    texts.iter().find(|text| **text == said).copied().unwrap_or(otherwise)
}

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
        Error::Corruption { path, offset, detail } => {
            text(out, 13, &path.display().to_string());
            out.varint(*offset);
            out.bytes(detail.chars().take(TEXT_MAX / 4).collect::<String>().as_bytes());
        }
        Error::NoRoute { key } => {
            out.u8(14);
            out.bytes(key);
        }
        Error::LeaderStays { region } => {
            out.u8(15);
            out.varint(region.0);
        }
        other => text(out, 12, &other.to_string()),
    }
}

/// Reads an error.
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
        4 => Error::Busy { what: known(&from.text(TEXT_MAX)?, &BUSY, "another node") },
        5 => {
            let after_ms = from.varint()?;
            let what = known(&from.text(TEXT_MAX)?, &TIMEOUT, "another node");
            Error::Timeout { after_ms, what }
        }
        6 => {
            let what = from.text(TEXT_MAX)?;
            Error::Ambiguous { what: known(&what, &AMBIGUOUS, "another node could not tell") }
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
        13 => Error::Corruption {
            path: from.text(TEXT_MAX)?.into(),
            offset: from.varint()?,
            detail: from.text(TEXT_MAX)?,
        },
        15 => Error::LeaderStays { region: RegionId(from.varint()?) },
        14 => Error::NoRoute { key: from.bytes(BOUND_BYTES_MAX)? },
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
            Error::LeaderStays { region: RegionId(1) },
            Error::NoRoute { key: Bytes::from_static(b"k") },
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

    fn over_the_wire(error: &Error) -> Error {
        let mut out = Vec::new();
        encode(error, &mut Writer::new(&mut out));
        decode(&mut Reader::new("error", Bytes::from(out))).unwrap()
    }

    #[test]
    fn what_went_wrong_survives_the_wire() {
        let path = || std::path::PathBuf::from("tables/7");
        for error in [
            Error::Busy { what: "state store (flush is behind)" },
            Error::Timeout { after_ms: 9, what: "the region's answer" },
            Error::Ambiguous { what: "overtaken by a snapshot" },
            Error::DiskFull { path: path() },
            Error::Corruption { path: path(), offset: 1 << 40, detail: "block".into() },
        ] {
            let back = over_the_wire(&error);
            assert_eq!(format!("{back:?}"), format!("{error:?}"));
        }
        let newer = over_the_wire(&Error::Busy { what: "something of a later version" });
        assert!(matches!(newer, Error::Busy { what: "another node" }), "{newer}");
    }

    /// The texts of the errors built anywhere in the sources, but for those of tests.
    fn texts_of(dir: &std::path::Path, kind: &str, found: &mut std::collections::BTreeSet<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                texts_of(&path, kind, found);
                continue;
            }
            let source = std::fs::read_to_string(&path).unwrap();
            let source = source.split("mod tests {").next().unwrap();
            for piece in source.split(kind).skip(1) {
                let Some((_, text)) =
                    piece.split_once('}').and_then(|(fields, _)| fields.split_once("what: \""))
                else {
                    continue;
                };
                found.insert(text.split('"').next().unwrap().to_owned());
            }
        }
    }

    #[test]
    fn the_known_texts_are_those_of_the_sources() {
        let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        for (kind, texts) in
            [("Busy {", &BUSY[..]), ("Timeout {", &TIMEOUT[..]), ("Ambiguous {", &AMBIGUOUS[..])]
        {
            let mut found = std::collections::BTreeSet::new();
            texts_of(&sources, kind, &mut found);
            let unknown: Vec<_> =
                found.iter().filter(|text| !texts.contains(&text.as_str())).collect();
            assert!(found.len() > 4 && unknown.is_empty(), "{kind} also says {unknown:?}");
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
