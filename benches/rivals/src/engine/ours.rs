//! `catamaran::log`. With a window, a thread writes rounds, as a node's driver does; without, the
//! callers do it themselves (group commit).

use super::{Engine, Files, Setup, Ticket, Which};
use crate::work::{Payload, Piece};
use anyhow::Result;
use catamaran::env::os::OsDisk;
use catamaran::log::{Entry, Log, LogBatch, Options, Seq};
use catamaran::types::LogPosition;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes of a run from which the compressed variant compresses it.
const COMPRESS_ABOVE: usize = 512;

/// Our log and, maybe, its writer.
pub struct Ours {
    log: Log,
    writer: Option<JoinHandle<()>>,
    ended: Arc<AtomicBool>,
}

impl Ours {
    /// Opens it, with as many spare files as a node keeps.
    pub fn open(which: Which, dir: &Path, setup: Setup) -> Result<Ours> {
        let compress_above = (which == Which::CatamaranLz4).then_some(COMPRESS_ABOVE);
        let usual = Options { spare_segments: 4, compress_above, ..Options::default() };
        let options = match setup.files {
            Files::Usual => usual,
            Files::Small => Options { segment_bytes: 32 << 20, ..usual },
        };
        let (log, _) = Log::open(Arc::new(OsDisk), dir, options)?;
        let ended = Arc::new(AtomicBool::new(false));
        let writer = (setup.window > 1).then(|| {
            let (log, ended) = (log.clone(), Arc::clone(&ended));
            std::thread::spawn(move || {
                while !ended.load(Ordering::Acquire) {
                    // A failed round stops the log; those who wait are told.
                    if log.wait_for_work(Duration::from_millis(50)) && log.write_round().is_err() {
                        break;
                    }
                }
            })
        });
        Ok(Ours { log, writer, ended })
    }

    /// The log itself.
    pub fn log(&self) -> &Log {
        &self.log
    }

    fn batch(pieces: &[Piece], payload: &mut Payload) -> LogBatch {
        let mut batch = LogBatch::new();
        for piece in pieces {
            let entries = (piece.first..piece.first + piece.count).map(|index| Entry {
                index,
                term: 1,
                kind: 0,
                data: payload.entry(),
            });
            batch.append(piece.group, entries);
            if let Some(index) = piece.compact_to {
                batch.compact_to(piece.group, LogPosition { index, term: 1 });
            }
        }
        batch
    }
}

impl Engine for Ours {
    fn write(&self, pieces: &[Piece], payload: &mut Payload) -> Result<Ticket> {
        let seq = self.log.submit(Self::batch(pieces, payload))?;
        // What was compacted has been applied; so has, by then, about all that is durable.
        for piece in pieces.iter().filter(|piece| piece.compact_to.is_some()) {
            self.log.trim_cache(piece.group, piece.first - 1);
        }
        Ok(Ticket::Seq(seq.0))
    }

    fn settle(&self, ticket: Ticket) -> Result<()> {
        if let Ticket::Seq(seq) = ticket {
            self.log.wait(Seq(seq))?;
        }
        Ok(())
    }

    fn fill(&self, pieces: &[Piece], payload: &mut Payload) -> Result<()> {
        let seq = self.log.submit(Self::batch(pieces, payload))?;
        for piece in pieces {
            self.log.trim_cache(piece.group, piece.first + piece.count - 1);
        }
        if self.log.is_crowded() {
            self.log.wait(seq)?;
        }
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        self.log.barrier()?;
        // What the thread does that an embedder gives it: without it full segments have no footers.
        while self.log.prepare()? {}
        Ok(())
    }

    fn compact(&self, group: u64, to: u64) -> Result<()> {
        let mut batch = LogBatch::new();
        batch.compact_to(group, LogPosition { index: to, term: 1 });
        self.log.submit(batch)?;
        Ok(())
    }

    fn prepare(&self) -> Result<bool> {
        Ok(self.log.prepare()?)
    }

    fn purge(&self) -> Result<()> {
        self.log.purge()?;
        Ok(())
    }

    fn read(&self, group: u64, from: u64, to: u64) -> Result<u64> {
        let entries = self.log.entries(group, from, to, u64::MAX)?;
        Ok(entries.iter().map(|entry| entry.data.len() as u64).sum())
    }

    fn last_index(&self, group: u64) -> u64 {
        self.log.last_index(group)
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        self.log.wake_writer();
        if let Some(writer) = self.writer.take() {
            // It ends by itself; that it panicked would have been seen by those who waited.
            let _ = writer.join();
        }
    }
}
