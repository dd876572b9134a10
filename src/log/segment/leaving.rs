//! What becomes of files of segments that nobody needs.

use super::Spare;
use crate::env::{Disk, File, OpenMode};
use crate::error::{Error, Result};
use std::path::PathBuf;
use std::sync::Arc;

/// Files of segments on their way into the pool, with their new names, or away.
#[derive(Debug)]
pub(in crate::log) struct Leaving {
    pub disk: Arc<dyn Disk>,
    pub dir: PathBuf,
    pub size: u64,
    pub files: Vec<(PathBuf, Arc<dyn File>, Option<PathBuf>)>,
}

impl Leaving {
    /// Renames or removes them, durably, each before the next: an older file must not survive a newer one
    /// in which a group was cleared. What may join the pool is returned.
    pub fn rename(self) -> Result<Vec<Spare>> {
        let mut kept = Vec::new();
        for (path, file, to) in self.files {
            let len = file.len()?;
            let mut to = to.filter(|_| len >= self.size);
            if let Some(name) = &to {
                let renamed = match len > self.size {
                    // A footer or a large batch made it grow. Nothing in it is needed any more.
                    true => file.set_len(self.size),
                    false => Ok(()),
                };
                match renamed.and_then(|()| self.disk.rename(&path, name)) {
                    Ok(()) => {}
                    // To remove it takes no room.
                    Err(Error::DiskFull { .. }) => to = None,
                    Err(error) => return Err(error),
                }
            }
            if to.is_none() {
                drop(file);
                self.disk.remove(&path)?;
            }
            // Before the file gets a new header, too: else a crash could show it under its old name.
            self.disk.sync_dir(&self.dir)?;
            if let Some(path) = to {
                let file = self.disk.open(&path, OpenMode::Direct)?;
                kept.push(Spare { path, file, size: self.size });
            }
        }
        Ok(kept)
    }
}
