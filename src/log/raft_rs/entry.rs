//! raft's entries as the log keeps them.

use crate::error::{Error, Result};
use crate::log;
use ::raft::eraftpb::{Entry, EntryType};
use bytes::{BufMut, Bytes, BytesMut};

/// The entry's data begins with a context.
const WITH_CONTEXT: u8 = 0x80;

/// A raft entry as the log keeps it. Without a context its data is shared, not copied.
pub fn to_log(entry: &Entry) -> log::Entry {
    let kind = entry.get_entry_type() as u8;
    let (kind, data) = match entry.context.len() {
        0 => (kind, entry.data.clone()),
        len => {
            let mut data = BytesMut::with_capacity(4 + len + entry.data.len());
            data.put_u32_le(len as u32);
            data.extend_from_slice(&entry.context);
            data.extend_from_slice(&entry.data);
            (kind | WITH_CONTEXT, data.freeze())
        }
    };
    log::Entry { index: entry.index, term: entry.term, kind, data }
}

/// The raft entry that [`to_log`] kept. [`Malformed`](Error::Malformed) for one that it did not make.
pub fn from_log(entry: log::Entry) -> Result<Entry> {
    let malformed = |detail: &str| {
        Error::malformed(
            "raft entry",
            format!("{detail}, index {}, kind {}", entry.index, entry.kind),
        )
    };
    let kind = match entry.kind & !WITH_CONTEXT {
        0 => EntryType::EntryNormal,
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        _ => return Err(malformed("unknown kind")),
    };
    let mut data = entry.data.clone();
    let mut context = Bytes::new();
    if entry.kind & WITH_CONTEXT != 0 {
        let len = data.first_chunk().map(|len| u32::from_le_bytes(*len) as usize);
        let len = len.filter(|len| *len <= data.len() - 4);
        let len = len.ok_or_else(|| malformed("context cut short"))?;
        context = data.split_to(4 + len).slice(4..);
    }
    let mut out =
        Entry { index: entry.index, term: entry.term, data, context, ..Default::default() };
    out.set_entry_type(kind);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for kind in
            [EntryType::EntryNormal, EntryType::EntryConfChange, EntryType::EntryConfChangeV2]
        {
            for (context, data) in [("", ""), ("", "data"), ("context", ""), ("context", "data")] {
                let mut entry = Entry { index: 7, term: 3, ..Default::default() };
                entry.data = data.into();
                entry.context = context.into();
                entry.set_entry_type(kind);
                assert_eq!(from_log(to_log(&entry)).unwrap(), entry);
            }
        }
    }

    #[test]
    fn foreign_entries_are_refused() {
        for (kind, data) in
            [(3, "x"), (0x80, ""), (0x80, "abc"), (0x81, "\u{9}\0\0\0short"), (0xff, "")]
        {
            let entry = log::Entry { index: 1, term: 1, kind, data: data.into() };
            assert!(matches!(from_log(entry), Err(Error::Malformed { .. })), "{kind} {data}");
        }
    }
}
