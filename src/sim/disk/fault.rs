//! What can go wrong with a disk, by plan or by chance.

use crate::sim::rng::Rng;
use std::collections::BTreeSet;
use std::time::Duration;

/// When a fault strikes.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum Fires {
    /// Never.
    #[default]
    Never,
    /// At these operations of its kind, counted from 1 over the life of the disk.
    At(BTreeSet<u64>),
    /// At so many of 1,000 operations.
    Permille(u32),
    /// Every time.
    Always,
}

impl Fires {
    /// Whether it strikes the `nth` operation. Draws in every case.
    pub(super) fn strikes(&self, rng: &mut Rng, site: &'static str, nth: u64) -> bool {
        let drawn = rng.draw(site) % 1000;
        match self {
            Fires::Never => false,
            Fires::At(these) => these.contains(&nth),
            Fires::Permille(permille) => drawn < u64::from(*permille),
            Fires::Always => true,
        }
    }
}

/// What goes wrong with a disk, and how fast it is. The default is a perfect disk that takes no time.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Faults {
    /// Reads fail with an I/O error.
    pub read: Fires,
    /// Writes fail with an I/O error; a part may have been written.
    pub write: Fires,
    /// Syncs fail with an I/O error; a part of the bytes is lost for ever, see the room's head.
    pub sync: Fires,
    /// Syncs of directories fail; the changes stay unsynced.
    pub dir_sync: Fires,
    /// How many bytes fit; `None`: any number.
    pub capacity: Option<u64>,
    /// The power fails during the change with this number ([`super::Counts::changes`], from 1): it may
    /// happen or not, and everything after it fails until the crash.
    pub power_off_after: Option<u64>,
    /// How long things take.
    pub speed: Speed,
}

/// How long a disk takes.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Speed {
    /// Each read.
    pub read: Duration,
    /// Each write, its bytes apart.
    pub write: Duration,
    /// Each sync of a file or directory.
    pub sync: Duration,
    /// Bytes written per second; 0: they cost nothing.
    pub bytes_per_second: u64,
    /// Syncs that stall.
    pub stalls: Fires,
    /// How long a stall adds at most.
    pub stall: Duration,
}

impl Speed {
    /// A usual solid-state disk: 1 ms per sync, 500 MB/s.
    pub fn solid_state() -> Speed {
        Speed {
            read: Duration::from_micros(80),
            write: Duration::from_micros(10),
            sync: Duration::from_millis(1),
            bytes_per_second: 500_000_000,
            stalls: Fires::Never,
            stall: Duration::ZERO,
        }
    }

    /// The same on a bad day: one sync in fifty stalls for up to two seconds.
    pub fn stalling() -> Speed {
        Speed { stalls: Fires::Permille(20), stall: Duration::from_secs(2), ..Speed::solid_state() }
    }
}
