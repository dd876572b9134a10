//! databend's raft-log holds one group; many groups are many of them, each with its directory and its
//! flushing thread. Its flush takes a callback, so writes can be outstanding.

use super::{Engine, Files, Setup, Ticket};
use crate::work::{Payload, Piece};
use anyhow::{Context, Result, anyhow};
use raft_log::api::raft_log_writer::RaftLogWriter;
use raft_log::{Config, RaftLog, Types};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Plain;

impl Types for Plain {
    /// Term and index.
    type LogId = (u64, u64);
    type LogPayload = Vec<u8>;
    type Vote = (u64, u64);
    type UserData = String;
    type Callback = SyncSender<std::io::Result<()>>;

    fn log_index(log_id: &(u64, u64)) -> u64 {
        log_id.1
    }

    fn payload_size(payload: &Vec<u8>) -> u64 {
        payload.len() as u64
    }
}

/// A log for each group.
pub struct PerGroup {
    logs: Vec<Mutex<RaftLog<Plain>>>,
}

impl PerGroup {
    /// Opens them all.
    pub fn open(dir: &Path, setup: Setup) -> Result<PerGroup> {
        let logs = (1..=setup.groups).map(|group| {
            let dir = dir.join(format!("{group:08}"));
            std::fs::create_dir_all(&dir)?;
            let mut config = Config::new(dir.to_string_lossy());
            // Its cache of payloads is per log: as much as ours has for all.
            config.log_cache_capacity = Some((100 << 20) / setup.groups as usize);
            // By default a sync is put off for a millisecond, in case more comes. A writer that waits has nothing more.
            config.wal.flush_batch_wait = Some(Duration::ZERO);
            if setup.files == Files::Small {
                // 1 GB over all groups is little for each: files of a tenth of it.
                config.wal.chunk_max_size = Some(((100 << 20) / setup.groups as usize).max(4096));
            }
            let log = RaftLog::open(Arc::new(config)).with_context(|| format!("group {group}"))?;
            Ok(Mutex::new(log))
        });
        Ok(PerGroup { logs: logs.collect::<Result<_>>()? })
    }

    fn log(&self, group: u64) -> Result<MutexGuard<'_, RaftLog<Plain>>> {
        let log = self.logs.get(group.saturating_sub(1) as usize);
        let log = log.ok_or_else(|| anyhow!("no group {group}"))?;
        Ok(log.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn append(log: &mut RaftLog<Plain>, piece: &Piece, payload: &mut Payload) -> Result<()> {
        let range = piece.first..piece.first + piece.count;
        log.append(range.map(|index| ((1, index), payload.entry().to_vec())))?;
        if let Some(index) = piece.compact_to {
            log.purge((1, index))?;
        }
        Ok(())
    }
}

fn flush(log: &mut RaftLog<Plain>) -> Result<Receiver<std::io::Result<()>>> {
    let (tell, told) = sync_channel(1);
    log.flush(true, Some(tell))?;
    Ok(told)
}

impl Engine for PerGroup {
    fn write(&self, pieces: &[Piece], payload: &mut Payload) -> Result<Ticket> {
        let mut answers = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let mut log = self.log(piece.group)?;
            Self::append(&mut log, piece, payload)?;
            answers.push(flush(&mut log)?);
        }
        Ok(Ticket::Answers(answers))
    }

    fn settle(&self, ticket: Ticket) -> Result<()> {
        if let Ticket::Answers(answers) = ticket {
            for answer in answers {
                answer.recv()??;
            }
        }
        Ok(())
    }

    fn fill(&self, pieces: &[Piece], payload: &mut Payload) -> Result<()> {
        for piece in pieces {
            let mut log = self.log(piece.group)?;
            Self::append(&mut log, piece, payload)?;
            log.flush(false, None)?;
        }
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        let mut answers = Vec::with_capacity(self.logs.len());
        for group in 1..=self.logs.len() as u64 {
            answers.push(flush(&mut *self.log(group)?)?);
        }
        self.settle(Ticket::Answers(answers))
    }

    fn compact(&self, group: u64, to: u64) -> Result<()> {
        self.log(group)?.purge((1, to))?;
        Ok(())
    }

    fn purge(&self) -> Result<()> {
        // A purge record is enough; files go when a flush follows.
        Ok(())
    }

    fn read(&self, group: u64, from: u64, to: u64) -> Result<u64> {
        let log = self.log(group)?;
        let mut bytes = 0;
        for entry in log.read(from, to) {
            bytes += entry?.1.len() as u64;
        }
        Ok(bytes)
    }

    fn last_index(&self, group: u64) -> u64 {
        self.log(group).ok().and_then(|log| log.log_state().last().map(|id| id.1)).unwrap_or(0)
    }
}
