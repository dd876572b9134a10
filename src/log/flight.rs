//! Groups of batches on their way to the disk. A few may be in flight at a time; whatever order the
//! disk completes them in, they become durable (are published) in the order in which they took off.

use super::Shared;
use super::echo::EchoDraft;
use super::format::{BLOCK, RECORD_HEADER, RecordHeader, align};
use super::notes;
use super::write::Writer;
use crate::env::File;
use crate::error::{Error, Result};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, AtomicUsize};

/// Who waits lets another group take off only while fewer than so many are in the air. Each further one adds less to
/// what the disk takes, and smaller groups mean more syncs. Calls of `write_round` are not bound by it: each lets what
/// waits take off at once, so their callers' threads are the bound there.
pub(super) const FLIGHTS: usize = 4;

/// Retained capacity of a write buffer; a rare larger group gives its memory back.
const KEEP_BUFFER: usize = 4 << 20;

/// One group of batches, encoded, with its place in a segment.
#[derive(Debug)]
pub(super) struct Flight {
    /// Flights are numbered from 0 without gaps.
    number: u64,
    file: Arc<dyn File>,
    offset: u64,
    buffer: Aligned,
    /// Of each record: number, place of its payload, bytes of runs.
    places: Vec<(u64, u32, u64)>,
    /// For the segment's footer.
    notes: Vec<u8>,
    /// What counted as pending.
    pub pending_bytes: usize,
}

impl Flight {
    pub fn batches(&self) -> u64 {
        self.places.len() as u64
    }

    pub fn bytes(&self) -> u64 {
        self.buffer.as_slice().len() as u64
    }

    pub fn last_seq(&self) -> u64 {
        self.places.last().map_or(0, |(seq, ..)| *seq)
    }
}

/// Bytes that begin at a block's multiple in memory too: direct writes want that.
#[derive(Debug, Default)]
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    /// Room for `len` bytes, which [`push`](Self::push) must not exceed, in a used buffer if it fits.
    fn with_room(mut bytes: Vec<u8>, len: usize) -> Aligned {
        bytes.clear();
        bytes.reserve_exact(len + BLOCK);
        let start = bytes.as_ptr().align_offset(BLOCK).min(BLOCK);
        bytes.resize(start, 0);
        Aligned { bytes, start }
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn pad(&mut self) {
        let end = self.start + align(self.len());
        self.bytes.resize(end, 0);
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

/// What is in flight.
///
/// - A flight is in the air (being written and synced), landed (on the disk), or grounded (no room on
///   the disk); never lost: its batches stay pending until it is published.
/// - Flight `next` is published when it has landed, then the one after it, and so on.
/// - A grounded flight flies again unchanged, before any other takes off: the bytes that later flights
///   wrote behind it stay what they are.
#[derive(Debug, Default)]
pub(super) struct Air {
    sky: Mutex<Sky>,
    /// Something landed, was grounded, or failed.
    moved: Condvar,
    /// Flights in the air.
    flying: AtomicUsize,
    /// Pending bytes of flights that are not published.
    bytes: AtomicUsize,
    /// Pending bytes of the flight that took off last.
    last_bytes: AtomicUsize,
    /// The last record that took off.
    last_seq: AtomicU64,
}

#[derive(Debug, Default)]
struct Sky {
    /// The flight that is to be published next.
    next: u64,
    landed: BTreeMap<u64, Flight>,
    grounded: BTreeMap<u64, Flight>,
    buffers: Vec<Vec<u8>>,
}

impl Air {
    /// Whether another group should take off, when so many bytes are pending in all: at once if the
    /// air is free, else only if it would be as large as the last, or groups would get ever smaller.
    pub fn has_room(&self, pending: usize) -> bool {
        match self.flying.load(Relaxed) {
            0 => true,
            n if n >= FLIGHTS => false,
            _ => {
                let waiting = pending.saturating_sub(self.bytes.load(Relaxed));
                waiting > 0 && waiting >= self.last_bytes.load(Relaxed)
            }
        }
    }

    /// Whether nothing is in the air.
    pub fn is_free(&self) -> bool {
        self.flying.load(Relaxed) == 0
    }

    /// Whether this record is on its way, or there.
    pub fn carries(&self, seq: u64) -> bool {
        self.last_seq.load(Acquire) >= seq
    }

    /// A flight that found no room on the disk, to try again.
    pub fn again(&self) -> Option<Flight> {
        let (_, flight) = self.sky.lock().grounded.pop_first()?;
        self.flying.fetch_add(1, Relaxed);
        Some(flight)
    }

    /// Wakes everybody who waits for a landing: something failed for good.
    pub fn alarm(&self) {
        let _sky = self.sky.lock();
        self.moved.notify_all();
    }
}

impl Shared {
    /// Puts the first `count` waiting batches into one group, at the writer's place.
    pub(super) fn board(&self, writer: &mut Writer, count: usize) -> Flight {
        let durable = self.durable.load(Acquire);
        let waiting = writer.stalled.iter().take(count);
        let (mut pending_bytes, mut room) = (0, 0);
        for pending in waiting {
            pending_bytes += pending.size();
            room += notes::room(&pending.encoded);
        }
        let mut noted = Vec::with_capacity(room);
        let echo = writer.take_echoes(durable);
        let used = self.air.sky.lock().buffers.pop().unwrap_or_default();
        let mut buffer = Aligned::with_room(used, align(pending_bytes + echo.len()));
        let mut places = Vec::with_capacity(count);
        let first = writer.stalled.front().map_or(0, |pending| pending.seq);
        let mut own = EchoDraft::new(writer.offset, first);
        for pending in writer.stalled.drain(..count) {
            let encoded = &pending.encoded;
            let header = RecordHeader {
                generation: writer.generation,
                seq: pending.seq,
                durable,
                dir_len: encoded.dir.len() as u32,
                payload_len: encoded.payload.len() as u32,
                dir_crc: encoded.dir_crc,
                echo_len: if pending.seq == first { echo.len() as u32 } else { 0 },
            };
            own.push(&header, &encoded.groups);
            notes::note(&mut noted, encoded);
            let payload_at = buffer.len() + RECORD_HEADER + encoded.dir.len();
            header.encode_to(&mut buffer.bytes);
            buffer.push(&encoded.dir);
            buffer.push(&encoded.payload);
            if pending.seq == first {
                buffer.push(&echo);
            }
            places.push((
                pending.seq,
                (writer.offset + payload_at as u64) as u32,
                pending.run_bytes,
            ));
        }
        buffer.pad();
        let (number, offset) = (writer.next_flight, writer.offset);
        let flight = Flight {
            number,
            file: writer.file.clone(),
            offset,
            buffer,
            places,
            notes: noted,
            pending_bytes,
        };
        writer.echoes.push_back((flight.last_seq(), own.finish()));
        writer.next_flight += 1;
        writer.offset += flight.bytes();
        writer.stated = durable;
        self.air.flying.fetch_add(1, Relaxed);
        self.air.bytes.fetch_add(pending_bytes, Relaxed);
        self.air.last_bytes.store(pending_bytes, Relaxed);
        self.air.last_seq.store(flight.last_seq(), Release);
        flight
    }

    /// Writes and syncs a group, and waits until it is published (those before it are, then).
    ///
    /// [`DiskFull`](Error::DiskFull) for it or for one before it leaves all of them to be tried again; any
    /// other failure is final, and so is a sync that fails for want of room.
    pub(super) fn fly(&self, flight: Flight) -> Result<()> {
        let (number, air) = (flight.number, &self.air);
        let written = flight.file.write_at(flight.offset, flight.buffer.as_slice());
        let result = match written {
            Ok(()) => flight.file.sync_data().map_err(|error| self.poison(error)),
            // Nothing of it was acknowledged: the same bytes go to the same place when there is room.
            Err(full @ Error::DiskFull { .. }) => Err(full),
            Err(error) => Err(self.poison(error)),
        };
        let mut sky = air.sky.lock();
        let failed = match result {
            Ok(()) => {
                sky.landed.insert(number, flight);
                None
            }
            Err(full @ Error::DiskFull { .. }) => {
                sky.grounded.insert(number, flight);
                Some(full)
            }
            Err(error) => Some(error),
        };
        let mut published = false;
        // After a failed sync nothing is acknowledged any more, not even what landed.
        while !self.stopped() {
            let next = sky.next;
            let Some(flight) = sky.landed.remove(&next) else { break };
            self.publish(&mut sky, flight);
            published = true;
        }
        air.flying.fetch_sub(1, Relaxed);
        if published || failed.is_some() {
            air.moved.notify_all();
            drop(sky);
            self.notify();
            sky = air.sky.lock();
        }
        if let Some(error) = failed {
            return Err(error);
        }
        while sky.next <= number {
            self.check_running()?;
            if let Some((_, before)) = sky.grounded.range(..number).next() {
                return Err(Error::DiskFull { path: before.file.path().to_owned() });
            }
            air.moved.wait(&mut sky);
        }
        Ok(())
    }

    fn publish(&self, sky: &mut Sky, flight: Flight) {
        let (bytes, last, batches) = (flight.bytes(), flight.last_seq(), flight.batches());
        let end = flight.offset + bytes;
        {
            let mut segments = self.segments.write();
            for (seq, at, run_bytes) in flight.places {
                segments.place(seq, at, run_bytes);
            }
            // The segment does not change while anything is in flight.
            if let Some(mut active) = segments.by_base.last_entry() {
                let active = active.get_mut();
                active.used = end;
                active.size = active.size.max(end);
                active.notes.add(batches, flight.notes, active.size);
            }
        }
        sky.next += 1;
        let buffer = flight.buffer.bytes;
        if buffer.capacity() <= KEEP_BUFFER && sky.buffers.len() < FLIGHTS {
            sky.buffers.push(buffer);
        }
        let counters = &self.counters;
        counters.writes.fetch_add(1, Relaxed);
        counters.fsyncs.fetch_add(1, Relaxed);
        counters.bytes_written.fetch_add(bytes, Relaxed);
        self.air.bytes.fetch_sub(flight.pending_bytes, Relaxed);
        self.pending_bytes.fetch_sub(flight.pending_bytes, Relaxed);
        self.durable.store(last, Release);
    }

    /// Waits until record `seq`, which took off, is published, or until its flight (or one before it) is
    /// grounded: then the caller has to let it fly again.
    pub(super) fn landed(&self, seq: u64) -> Result<()> {
        let mut sky = self.air.sky.lock();
        while self.durable.load(Acquire) < seq && sky.grounded.is_empty() {
            self.check_running()?;
            self.air.moved.wait(&mut sky);
        }
        Ok(())
    }

    /// Waits until every flight that took off is published. `false`: one found no room on the disk.
    pub(super) fn all_landed(&self, writer: &Writer) -> Result<Landed> {
        let mut sky = self.air.sky.lock();
        while sky.next < writer.next_flight {
            self.check_running()?;
            if !sky.grounded.is_empty() {
                return Ok(Landed::NotAll);
            }
            self.air.moved.wait(&mut sky);
        }
        Ok(Landed::All)
    }
}

/// Whether everything that took off is published.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Landed {
    All,
    /// A flight is grounded and has to be tried again.
    NotAll,
}
