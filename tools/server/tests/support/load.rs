//! Writers that know what they wrote, and afterwards what must be there.

use super::client;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Keys of each writer.
const KEYS: u64 = 64;

/// What one writer knows of a key: versions up to `acked` were acknowledged, up to `issued` tried.
#[derive(Clone, Copy, Default)]
struct Versions {
    acked: u64,
    issued: u64,
}

/// What one writer did.
#[derive(Default)]
pub struct Written {
    writer: u64,
    versions: Vec<Versions>,
    /// Writes acknowledged.
    pub acknowledged: u64,
    /// Writes that failed or whose outcome is unknown.
    pub failed: u64,
}

fn name(writer: u64, at: u64) -> String {
    format!("writer{writer}/key{at:03}")
}

/// Keys go round the regions: a new cluster is cut by the first eight bytes.
pub fn key(regions: u64, region: u64, name: &str) -> Vec<u8> {
    let start = (u128::from(region % regions) << 64).div_ceil(u128::from(regions));
    let mut key = (start as u64).to_be_bytes().to_vec();
    key.extend_from_slice(name.as_bytes());
    key
}

/// Who is asked; it may change while writers run.
pub struct Targets(Mutex<(u64, Vec<String>)>);

impl Targets {
    /// These addresses.
    pub fn new(addresses: Vec<String>) -> Targets {
        Targets(Mutex::new((0, addresses)))
    }

    /// Others from now on.
    pub fn set(&self, addresses: Vec<String>) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *now = (now.0 + 1, addresses);
    }

    fn get(&self) -> (u64, Vec<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Writes round and round its keys, over all regions, until told to stop.
pub fn write_until(stop: &AtomicBool, targets: &Targets, regions: u64, writer: u64) -> Written {
    let mut written = Written { writer, ..Written::default() };
    written.versions = vec![Versions::default(); KEYS as usize];
    let (mut change, mut addresses) = targets.get();
    let mut asked = client(&addresses, Duration::from_secs(2));
    for turn in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let now = targets.get();
        if now.0 != change {
            (change, addresses) = now;
            asked = client(&addresses, Duration::from_secs(2));
        }
        let at = turn % KEYS;
        let slot = &mut written.versions[at as usize];
        slot.issued += 1;
        let value = format!("{}={}", name(writer, at), slot.issued);
        match asked.put(key(regions, at, &name(writer, at)), value) {
            Ok(()) => {
                slot.acked = slot.issued;
                written.acknowledged += 1;
            }
            Err(_) => written.failed += 1,
        }
    }
    written
}

/// Reads everything back, linearizable; panics if anything acknowledged is missing or wrong.
pub fn verify(addresses: &[String], regions: u64, all: &[Written]) {
    let reader = client(addresses, Duration::from_secs(20));
    let (mut checked, mut missing, mut wrong) = (0, Vec::new(), Vec::new());
    for written in all {
        for (at, slot) in (0..).zip(&written.versions).filter(|(_, slot)| slot.acked > 0) {
            checked += 1;
            let name = name(written.writer, at);
            let Some(value) = reader.get(key(regions, at, &name)).unwrap() else {
                missing.push(name);
                continue;
            };
            let value = String::from_utf8_lossy(&value).into_owned();
            let version = value.strip_prefix(&format!("{name}=")).and_then(|v| v.parse().ok());
            if !version.is_some_and(|version| (slot.acked..=slot.issued).contains(&version)) {
                wrong.push(format!("{name}: {value}, wanted {}..={}", slot.acked, slot.issued));
            }
        }
    }
    let acknowledged: u64 = all.iter().map(|one| one.acknowledged).sum();
    let failed: u64 = all.iter().map(|one| one.failed).sum();
    println!(
        "{acknowledged} writes acknowledged, {failed} failed, {checked} keys checked, {} missing, \
         {} wrong",
        missing.len(),
        wrong.len()
    );
    assert!(acknowledged > 0 && checked > 0, "nothing was written");
    assert!(missing.is_empty() && wrong.is_empty(), "missing {missing:?}, wrong {wrong:?}");
}
