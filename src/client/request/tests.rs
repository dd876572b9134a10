//! Requests and responses survive their bytes; anything else is refused.

use super::*;
use crate::types::{Epoch, Peer, PeerId, Region, Role};
use proptest::prelude::*;

#[test]
fn requests_read_back() {
    let stale = ReadLevel::Stale { max: Duration::from_millis(70) };
    let bodies = [
        Body::Write { command: "batch".into() },
        Body::Execute { key: "k".into(), command: "c".into() },
        Body::Read { level: ReadLevel::Lease, keys: vec!["a".into(), "".into()] },
        Body::Scan {
            level: stale,
            direction: Direction::Reverse,
            range: KeyRange::new("a", ""),
            items: 10,
            bytes: 100,
        },
        Body::Status { region: None },
        Body::Status { region: Some(RegionId(1 << 40)) },
        Body::Transfer { region: RegionId(3), to: Some(StoreId(1)) },
    ];
    for body in bodies {
        for route in [None, Some(Route { region: RegionId(9), version: 4 })] {
            let timeout = Duration::from_millis(1234);
            let request = Request { timeout, route, body: body.clone() };
            assert_eq!(Request::decode(request.encode()).unwrap(), request);
        }
    }
}

#[test]
fn responses_read_back() {
    let status = RegionStatus {
        region: Region {
            id: RegionId(3),
            range: KeyRange::new("a", "b"),
            epoch: Epoch { conf_ver: 1, version: 1 },
            peers: vec![Peer { id: PeerId(1), store: StoreId(1), role: Role::Learner }],
        },
        peer: PeerId(1),
        leads: true,
        leader: None,
        term: 300,
        committed: 1,
        applied: 2,
        flushed: 3,
        first_index: 4,
        last_index: 5,
        log_bytes: 6,
        bytes: 7,
        quarantined: Some("rot".into()),
        asleep: true,
        unsettled: Default::default(),
    };
    let responses = [
        Response::Written("x".into()),
        Response::Values(vec![None, Some("".into()), Some("v".into())]),
        Response::Page {
            items: vec![("k".into(), "v".into())],
            rest: Some(KeyRange::new("k\0", "")),
        },
        Response::Status(NodeStatus {
            store: StoreId(2),
            regions: vec![status],
            work: NodeWork {
                log_syncs: 7,
                table_bytes: 1 << 40,
                snapshots: crate::driver::SnapshotStats {
                    sent: 300,
                    kept: 1,
                    ..Default::default()
                },
                ..NodeWork::default()
            },
            stages: {
                let mut figures = (0..9).flat_map(|stage| [7 << stage, 5, 1, stage, 3]);
                crate::driver::StageStats::read(|| figures.next().ok_or(())).unwrap()
            },
        }),
        Response::Done,
        Response::Regions(vec![Region { id: RegionId(3), ..Region::default() }]),
        Response::Ids(1 << 20),
    ];
    for response in responses {
        assert_eq!(decode_response(encode_response(&Ok(response.clone()))).unwrap(), response);
    }
}

#[test]
fn an_answer_too_large_for_a_message_is_answered_as_an_error() {
    let large = Bytes::from(vec![7; VALUE_BYTES_MAX]);
    let one = Response::Values(vec![Some(large.clone())]);
    assert_eq!(decode_response(encode_response(&Ok(one.clone()))).unwrap(), one);
    let two = Response::Values(vec![Some(large.clone()), Some(large)]);
    let error = decode_response(encode_response(&Ok(two))).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    for bytes in [MESSAGE_BYTES_MAX - 1, MESSAGE_BYTES_MAX] {
        let written = Response::Written(vec![0; bytes].into());
        let error = decode_response(encode_response(&Ok(written))).unwrap_err();
        assert_eq!(error.outcome(), crate::error::Outcome::Unknown, "it was applied");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(mut bytes: Vec<u8>, kind in 0u8..10) {
        if let Some(first) = bytes.first_mut() { *first = VERSION; }
        if let Some(second) = bytes.get_mut(1) { *second = kind; }
        let bytes = Bytes::from(bytes);
        let _ = Request::decode(bytes.clone());
        let _ = decode_response(bytes);
    }
}
