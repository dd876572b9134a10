//! Cutting a client batch at region boundaries.

use super::cache::{RangeCache, Route};
use crate::codec::command::{self, BatchBuilder, Op};
use crate::error::{Error, Result};
use crate::types::KeyRange;
use bytes::Bytes;

/// The operations of a batch that belong to one region.
#[derive(Clone, PartialEq, Debug)]
pub struct Part {
    /// Where they go.
    pub route: Route,
    /// The operations, in the batch's order.
    pub command: Bytes,
    /// Which compare and swaps of the whole batch they hold, counted from 0, in order.
    pub swaps: Vec<u32>,
}

struct Open {
    route: Route,
    builder: BatchBuilder,
    swaps: Vec<u32>,
}

fn unknown(key: &[u8]) -> Error {
    Error::NoRoute { key: Bytes::copy_from_slice(key) }
}

fn open_part<'a>(parts: &'a mut Vec<Open>, route: &Route) -> &'a mut Open {
    let at = parts.iter().position(|part| part.route.region.id == route.region.id);
    let at = at.unwrap_or_else(|| {
        parts.push(Open { route: route.clone(), builder: BatchBuilder::new(), swaps: Vec::new() });
        parts.len() - 1
    });
    &mut parts[at]
}

/// The region that owns every operation of the batch, if one does: the common case, found without
/// copying anything. `None` for an empty batch, too. `near`, a route of this cache, is looked at first.
///
/// Errors when the batch does not parse or a key's region is not known.
pub fn lone_route<'a>(
    cache: &'a RangeCache,
    near: Option<&'a Route>,
    batch: &[u8],
) -> Result<Option<&'a Route>> {
    let mut found: Option<&Route> = None;
    for op in command::ops(batch) {
        let op = op?;
        let key = &batch[op.key()];
        let route = match found {
            Some(route) if route.region.range.contains(key) => route,
            Some(_) => return Ok(None),
            None => match near.filter(|near| near.region.range.contains(key)) {
                Some(near) => near,
                None => cache.lookup(key).ok_or_else(|| unknown(key))?,
            },
        };
        if let Op::DeleteRange { start, end } = &op {
            let until = &route.region.range.end;
            let end = &batch[end.clone()];
            let inside = until.is_empty() || (!end.is_empty() && end <= &until[..]);
            if !inside && (end.is_empty() || end > &batch[start.clone()]) {
                return Ok(None);
            }
        }
        found = Some(route);
    }
    Ok(found)
}

/// Sorts the operations of a batch by region, keeping their order within each; a range delete that
/// crosses regions is cut at the boundaries. An empty batch has no parts.
///
/// Errors when the batch does not parse or a key's region is not known.
pub fn split_batch(cache: &RangeCache, batch: &Bytes) -> Result<Vec<Part>> {
    if batch.is_empty() {
        return Ok(Vec::new());
    }
    if let Some(route) = lone_route(cache, None, batch)? {
        // Which swaps a lone part holds is of no use to anybody: all of them.
        return Ok(vec![Part { route: route.clone(), command: batch.clone(), swaps: Vec::new() }]);
    }
    let mut parts: Vec<Open> = Vec::new();
    let mut swap = 0;
    let mut ops = command::ops(batch);
    let mut from = ops.position();
    while let Some(op) = ops.next() {
        let op = op?;
        let raw = from..ops.position();
        from = raw.end;
        if let Op::DeleteRange { start, end } = op {
            split_range(
                cache,
                &KeyRange { start: batch.slice(start), end: batch.slice(end) },
                &mut parts,
            )?;
            continue;
        }
        let key = &batch[op.key()];
        let part = open_part(&mut parts, cache.lookup(key).ok_or_else(|| unknown(key))?);
        part.builder.push_raw(&batch[raw]);
        if let Op::CompareAndSwap { .. } = op {
            part.swaps.push(swap);
            swap += 1;
        }
    }
    Ok(parts
        .into_iter()
        .map(|part| Part { route: part.route, command: part.builder.finish(), swaps: part.swaps })
        .collect())
}

fn split_range(cache: &RangeCache, range: &KeyRange, parts: &mut Vec<Open>) -> Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    let mut covered = range.start.clone();
    for route in cache.overlapping(range) {
        let piece = range.intersect(&route.region.range);
        if piece.start != covered {
            return Err(unknown(&covered));
        }
        covered = piece.end.clone();
        open_part(parts, &route).builder.delete_range(&piece)?;
    }
    match covered == range.end {
        true => Ok(()),
        false => Err(unknown(&covered)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Epoch, Region, RegionId};

    fn cache() -> RangeCache {
        let mut cache = RangeCache::new();
        for (id, start, end) in [(1, "", "g"), (2, "g", "p"), (3, "p", "")] {
            cache.update(Region {
                id: RegionId(id),
                range: KeyRange::new(start, end),
                epoch: Epoch { conf_ver: 1, version: 1 },
                peers: Vec::new(),
            });
        }
        cache
    }

    fn shown(parts: &[Part]) -> Vec<String> {
        parts
            .iter()
            .map(|part| {
                let text = |r: std::ops::Range<usize>| {
                    std::str::from_utf8(&part.command[r]).unwrap().to_owned()
                };
                let ops: Vec<String> = command::ops(&part.command)
                    .map(|op| match op.unwrap() {
                        Op::Put { key, .. } => format!("+{}", text(key)),
                        Op::Delete { key } => format!("-{}", text(key)),
                        Op::DeleteRange { start, end } => {
                            format!("-[{},{})", text(start), text(end))
                        }
                        Op::CompareAndSwap { key, .. } => format!("?{}", text(key)),
                    })
                    .collect();
                format!("{} {} {:?}", part.route.region.id, ops.join(" "), part.swaps)
            })
            .collect()
    }

    #[test]
    fn a_batch_of_one_region_is_not_copied() {
        let mut batch = BatchBuilder::new();
        batch.put(b"a", b"1").unwrap();
        batch.compare_and_swap(b"b", None, Some(b"2")).unwrap();
        batch.delete_range(&KeyRange::new("a", "g")).unwrap();
        let batch = batch.finish();
        let parts = split_batch(&cache(), &batch).unwrap();
        assert_eq!(parts.len(), 1);
        assert_eq!(parts[0].command.as_ptr(), batch.as_ptr());
    }

    #[test]
    fn order_is_kept_and_ranges_are_cut() {
        let mut batch = BatchBuilder::new();
        batch.put(b"z", b"1").unwrap();
        batch.compare_and_swap(b"h", None, None).unwrap();
        batch.delete_range(&KeyRange::new("b", "")).unwrap();
        batch.compare_and_swap(b"a", None, Some(b"v")).unwrap();
        batch.delete_range(&KeyRange::new("x", "c")).unwrap();
        batch.delete(b"i").unwrap();
        batch.compare_and_swap(b"q", None, Some(b"v")).unwrap();
        let parts = split_batch(&cache(), &batch.finish()).unwrap();
        assert_eq!(
            shown(&parts),
            ["r3 +z -[p,) ?q [2]", "r2 ?h -[g,p) -i [0]", "r1 -[b,g) ?a [1]"]
        );
        let mut batch = BatchBuilder::new();
        batch.delete_range(&KeyRange::new("a", "h")).unwrap();
        let parts = split_batch(&cache(), &batch.finish()).unwrap();
        assert_eq!(shown(&parts), ["r1 -[a,g) []", "r2 -[g,h) []"]);
    }

    #[test]
    fn holes_and_garbage_are_refused() {
        let mut holes = RangeCache::new();
        holes.update(cache().lookup(b"h").unwrap().region.as_ref().clone());
        for range in [KeyRange::new("a", "h"), KeyRange::new("h", "z")] {
            let mut batch = BatchBuilder::new();
            batch.delete_range(&range).unwrap();
            assert!(split_batch(&holes, &batch.finish()).is_err());
        }
        assert!(split_batch(&cache(), &Bytes::from_static(b"\x09garbage")).is_err());
        assert!(split_batch(&cache(), &Bytes::new()).unwrap().is_empty());
    }
}
