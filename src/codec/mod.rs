//! How the house turns words into bytes and back, below every room that has a format: [`bytes`] is
//! the bounded little-endian cursor pair, [`command`], [`admin`] and [`merge`] what stands in log entries, [`region`] a
//! region's description on the wire, [`beat`] the heartbeat of a node pair, [`directory`] the record of the
//! cluster's stores, [`report`] what they tell of their regions.
//!
//! Protocol: a format is written with a [`bytes::Writer`] and read with a [`bytes::Reader`]; a reader
//! never trusts a length or a count before it has compared it with what is really there, never
//! panics, and answers [`Error::Malformed`](crate::Error::Malformed). Integrity (checksums) and
//! versions belong to the format that uses it, not to this room.
//!
//! Not done: no derive macro and no schema. The formats are few, and each has a page with offsets that
//! a macro would hide.

pub mod admin;
pub mod beat;
pub mod bytes;
pub mod command;
pub mod directory;
pub mod merge;
pub mod region;
pub mod report;

pub use bytes::{Reader, Writer};
