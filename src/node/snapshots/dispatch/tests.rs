//! A source gives the same pieces again, wherever it is taken back to.

use super::*;
use crate::kv::{MemoryStore, StateStore, WriteBatch};
use crate::types::KeyRange;

fn source(values: &[usize]) -> Source {
    let store = MemoryStore::new().unwrap();
    let mut batch = WriteBatch::new();
    for (at, len) in values.iter().enumerate() {
        let value: Vec<u8> = (0..*len).map(|i| (i * 7 + at) as u8).collect();
        batch.put(format!("k{at:03}").into(), value.into());
    }
    store.write(batch).unwrap();
    let chunks = Chunks::new(store.view().unwrap(), &KeyRange::all()).unwrap();
    Source { chunks, rest: Bytes::new(), firsts: vec![0], at: 0, most: 0 }
}

fn all(source: &mut Source) -> Vec<Bytes> {
    std::iter::from_fn(|| source.next().unwrap()).collect()
}

#[test]
fn pieces_come_again_as_they_were() {
    let values = [100, 3 << 20, 200_000, 200_000, 1, (1 << 20) - 11, 5 << 20, 9];
    let mut source = source(&values);
    let pieces = all(&mut source);
    assert!(pieces.len() > 10, "{}", pieces.len());
    for to in (0..=pieces.len()).chain([3, 0, pieces.len() - 1]) {
        source.rewind(to as u64).unwrap();
        let again = all(&mut source);
        assert!(again == pieces[to..], "from piece {to}");
    }
    // Taken back in the middle, further on than it was taken back before.
    for (stop, to) in [(5, 2), (7, 7), (3, 1), (1, 0)] {
        source.rewind(0).unwrap();
        for piece in &pieces[..stop] {
            assert_eq!(source.next().unwrap().as_ref(), Some(piece));
        }
        source.rewind(to as u64).unwrap();
        assert!(all(&mut source) == pieces[to..], "from piece {to} after {stop}");
    }
}

#[test]
fn what_was_never_sent_cannot_be_gone_back_to() {
    let mut source = source(&[1, 2]);
    assert!(source.rewind(1).is_err());
    source.next().unwrap();
    assert!(source.rewind(9).is_err());
    source.rewind(0).unwrap();
    assert_eq!(all(&mut source).len(), 1);
}
