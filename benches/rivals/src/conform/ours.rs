//! Our log under the conformance suite: on the real disk, and for the checks that need a disk with
//! faults, on the simulated one.

use catamaran::env::Disk;
use catamaran::sim::disk::{Fires, Mercy, SimDisk};
use catamaran::testkit::ours::CatamaranFactory;
use catamaran::testkit::{Factory, Failure, LogStore};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Checks that need faults. A store of such a name is on a disk in memory.
const FAULTY: [&str; 3] = [
    "a-power-cut-loses-nothing-synced",
    "nothing-is-acknowledged-after-a-failed-sync",
    "a-full-disk-is-survived",
];

/// Opens our logs.
pub struct Ours {
    real: CatamaranFactory,
    simulated: CatamaranFactory,
    disk: SimDisk,
}

impl Ours {
    /// Below `root`.
    pub fn new(root: &Path) -> Ours {
        let disk = SimDisk::new(1);
        let on: Arc<dyn Disk> = Arc::new(disk.clone());
        let simulated = CatamaranFactory::new(Path::new("/log")).on(on);
        Ours { real: CatamaranFactory::new(root), simulated, disk }
    }

    fn faulty(&self, store: &str) -> Result<&SimDisk, Failure> {
        match FAULTY.contains(&store) {
            true => Ok(&self.disk),
            false => Err(Failure::Unsupported("this store is on the real disk")),
        }
    }
}

impl Factory for Ours {
    fn name(&self) -> String {
        self.real.name()
    }

    fn open(&self, store: &str) -> Result<Box<dyn LogStore>, Failure> {
        match FAULTY.contains(&store) {
            true => self.simulated.open(store),
            false => self.real.open(store),
        }
    }

    fn directory(&self, store: &str) -> Result<PathBuf, Failure> {
        self.real.directory(store)
    }

    fn cut_power(&self, store: &str, _seed: u64) -> Result<(), Failure> {
        // The disk draws from a seed of its own.
        self.faulty(store)?.crash(Mercy::Drawn);
        Ok(())
    }

    fn fail_next_sync(&self, store: &str) -> Result<(), Failure> {
        let disk = self.faulty(store)?;
        let next = disk.counts().syncs + 1;
        disk.alter_faults(|faults| faults.sync = Fires::At([next].into()));
        Ok(())
    }

    fn limit_space(&self, store: &str, more: Option<u64>) -> Result<(), Failure> {
        let disk = self.faulty(store)?;
        let used = disk.used();
        disk.alter_faults(|faults| faults.capacity = more.map(|more| used + more));
        Ok(())
    }
}
