//! tikv's raft-engine: one log for all groups, writes block.

use super::{Engine, Files, Setup, Ticket, Which};
use crate::work::{Payload, Piece};
use anyhow::Result;
use raft::eraftpb::Entry;
use raft_engine::{Command, Config, LogBatch, MessageExt, ReadableSize};
use std::path::Path;

#[derive(Clone)]
struct Entries;

impl MessageExt for Entries {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

type RaftEngine = raft_engine::Engine;

/// One engine.
pub struct Shared {
    engine: RaftEngine,
}

impl Shared {
    /// Opens it; on recycled files, writes those first.
    pub fn open(which: Which, dir: &Path, setup: Setup) -> Result<Shared> {
        let mut config = Config { dir: dir.to_string_lossy().into_owned(), ..Config::default() };
        if matches!(which, Which::RaftEngineRaw | Which::RaftEngineRecycledRaw) {
            config.batch_compression_threshold = ReadableSize(0);
        }
        if matches!(which, Which::RaftEngineRecycled | Which::RaftEngineRecycledRaw) {
            // Six files, written full at opening (half as much again as the limit); purges put them back.
            config.target_file_size = ReadableSize::mb(64);
            config.purge_threshold = ReadableSize::mb(256);
            config.prefill_for_recycle = true;
            config.prefill_limit = Some(ReadableSize::mb(256));
        }
        if setup.files == Files::Small {
            config.target_file_size = ReadableSize::mb(32);
            config.purge_threshold = ReadableSize::mb(64);
        }
        Ok(Shared { engine: RaftEngine::open(config)? })
    }

    fn batch(pieces: &[Piece], payload: &mut Payload) -> Result<LogBatch> {
        let mut batch = LogBatch::default();
        let mut entries = Vec::new();
        for piece in pieces {
            entries.clear();
            entries.extend((piece.first..piece.first + piece.count).map(|index| {
                let mut entry = Entry::default();
                entry.set_index(index);
                entry.set_term(1);
                entry.data = payload.entry();
                entry
            }));
            batch.add_entries::<Entries>(piece.group, &entries)?;
            if let Some(index) = piece.compact_to {
                // Its command drops what lies below the index.
                batch.add_command(piece.group, Command::Compact { index: index + 1 });
            }
        }
        Ok(batch)
    }
}

impl Engine for Shared {
    fn write(&self, pieces: &[Piece], payload: &mut Payload) -> Result<Ticket> {
        self.engine.write(&mut Self::batch(pieces, payload)?, true)?;
        Ok(Ticket::Done)
    }

    fn settle(&self, _: Ticket) -> Result<()> {
        Ok(())
    }

    fn fill(&self, pieces: &[Piece], payload: &mut Payload) -> Result<()> {
        self.engine.write(&mut Self::batch(pieces, payload)?, false)?;
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        // `Engine::sync` writes an empty batch, which does nothing: an empty value syncs.
        let mut batch = LogBatch::default();
        batch.put(u64::MAX, b"end".to_vec(), Vec::new())?;
        self.engine.write(&mut batch, true)?;
        Ok(())
    }

    fn compact(&self, group: u64, to: u64) -> Result<()> {
        let mut batch = LogBatch::default();
        batch.add_command(group, Command::Compact { index: to + 1 });
        self.engine.write(&mut batch, false)?;
        Ok(())
    }

    fn purge(&self) -> Result<()> {
        // It names the groups that hold old files; what they need it rewrites by itself.
        let laggards = self.engine.purge_expired_files()?;
        drop(laggards);
        Ok(())
    }

    fn read(&self, group: u64, from: u64, to: u64) -> Result<u64> {
        let mut entries = Vec::new();
        self.engine.fetch_entries_to::<Entries>(group, from, to, None, &mut entries)?;
        Ok(entries.iter().map(|entry| entry.data.len() as u64).sum())
    }

    fn last_index(&self, group: u64) -> u64 {
        self.engine.last_index(group).unwrap_or(0)
    }
}
