//! Tables go to the disk while they are written.
//!
//! The crate writes a table to the page cache and syncs it when it is whole: sixty megabytes at once, before which every sync of the
//! log stands in line, and with it every write that waits for one. So the file that grows is synced every few megabytes, by a
//! descriptor of our own. Nothing depends on it: whoever wrote the table syncs it at its end, and hears of an
//! error then (the kernel tells every descriptor that was open when it happened).

use std::path::{Path, PathBuf};

/// Bytes of keys and values between two syncs.
const STEP: u64 = 4 << 20;
/// An ingestion and a compaction may write at the same time, each a table: the newest ones.
const NEWEST: usize = 2;

/// What a job has written since the last sync.
pub(super) struct Trickle {
    dir: PathBuf,
    bytes: u64,
}

impl Trickle {
    /// For tables that are written into this directory, under ascending numbers.
    pub fn into(dir: &Path) -> Trickle {
        Trickle { dir: dir.to_owned(), bytes: 0 }
    }

    /// So many bytes more.
    pub fn wrote(&mut self, bytes: u64) {
        self.bytes += bytes;
        if self.bytes >= STEP {
            self.bytes = 0;
            for table in self.newest() {
                let synced = std::fs::File::open(&table).and_then(|file| file.sync_data());
                if let Err(error) = synced {
                    tracing::debug!(%error, table = %table.display(), "not synced on its way");
                }
            }
        }
    }

    fn newest(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return Vec::new() };
        let number = |name: &std::ffi::OsStr| name.to_str().and_then(|name| name.parse().ok());
        let mut numbers: Vec<u64> =
            entries.filter_map(|entry| number(&entry.ok()?.file_name())).collect();
        let first = numbers.len().saturating_sub(NEWEST);
        numbers.sort_unstable();
        numbers.drain(first..).map(|number| self.dir.join(number.to_string())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_tables_are_those_of_the_highest_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let mut trickle = Trickle::into(&dir.path().join("tables"));
        trickle.wrote(STEP);
        assert!(trickle.newest().is_empty(), "there is no such directory, and nobody minds");
        let trickle = Trickle::into(dir.path());
        for name in ["9", "10", "100", "x", "99"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let newest = trickle.newest();
        assert_eq!(newest, [dir.path().join("99"), dir.path().join("100")]);
    }
}
