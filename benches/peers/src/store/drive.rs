//! A measurement, in one process: apply at full speed, settle, read, iterate, then apply at 80 % of what was reached.

use super::work::{KEY, Load};
use super::{Engine, Which, open};
use crate::used;
use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Of the load's operations, so many are applied again at 80 %.
const PACED_PART: u64 = 4;
const PACED: f64 = 0.8;

/// What was measured.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Figures {
    /// Operations applied per second, up to the return of the last batch.
    pub apply_per_s: f64,
    /// Seconds that flush and compaction still took afterwards.
    pub settle_s: f64,
    /// Processor time of the process for an operation, drawing it and settled compaction included.
    pub cpu_us_per_op: f64,
    /// Bytes written to files, until settled, for a byte of keys and values.
    pub write_amplification: f64,
    /// The longest batch at full speed, milliseconds.
    pub worst_batch_ms: f64,
    /// The longest batch at 80 % of `apply_per_s`, milliseconds.
    pub worst_paced_batch_ms: f64,
    /// Point reads of keys that are there per second, one thread.
    pub gets_per_s: f64,
    /// Keys per second of a walk over everything.
    pub scan_per_s: f64,
}

/// What a process is asked to measure.
#[derive(Args, Clone, Debug)]
pub struct Ask {
    /// Which engine.
    #[arg(long, value_parser = Which::parse)]
    pub which: Which,
    /// Where to work; must be empty.
    #[arg(long)]
    pub place: PathBuf,
    /// What to apply.
    #[command(flatten)]
    pub load: Load,
}

/// Applies the operations from `first` up to `end`; at full speed, or so many per second. Gives the longest batch.
fn apply(
    engine: &dyn Engine,
    load: &Load,
    (first, end): (u64, u64),
    rate: Option<f64>,
) -> Result<Duration> {
    let began = Instant::now();
    let mut longest = Duration::ZERO;
    let mut at = first;
    while at < end {
        let next = (at + load.batch).min(end);
        let rows = load.rows(at, next);
        if let Some(rate) = rate {
            let due = began + Duration::from_secs_f64((at - first) as f64 / rate);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let handed = Instant::now();
        engine.apply(rows)?;
        longest = longest.max(handed.elapsed());
        at = next;
    }
    Ok(longest)
}

/// Reads keys that are there, drawn at random, for a while; how many per second.
fn read(engine: &dyn Engine, load: &Load) -> Result<f64> {
    let (began, mut reads) = (Instant::now(), 0u64);
    let mut draw = load.seed | 1;
    while began.elapsed().as_secs_f64() < load.reading {
        for _ in 0..64 {
            draw = draw.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let op = (u128::from(draw) * u128::from(load.ops)) >> 64;
            let key: [u8; KEY] = load.key(op as u64);
            let found = engine.get(&key)?;
            ensure!(found == Some(load.value), "a key that was applied: {found:?}");
        }
        reads += 64;
    }
    Ok(reads as f64 / began.elapsed().as_secs_f64())
}

/// Measures, in this process, in an empty directory.
pub fn measure(which: Which, load: &Load, dir: &Path) -> Result<Figures> {
    ensure!(load.ops > 0 && load.batch > 0, "nothing to apply");
    let mut engine = open(which, load, dir)?;
    let (cpu, written, began) = (used::cpu(), used::written_bytes(), Instant::now());
    let worst = apply(&*engine, load, (0, load.ops), None)?;
    let applied = began.elapsed();
    engine.settle().context("settle")?;
    let settled = began.elapsed().saturating_sub(applied);
    let cpu = used::cpu().saturating_sub(cpu);
    let written = used::written_bytes().saturating_sub(written);
    let apply_per_s = load.ops as f64 / applied.as_secs_f64();

    let gets_per_s = read(&*engine, load)?;
    let walked = Instant::now();
    let keys = engine.scan()?;
    let scan_per_s = keys as f64 / walked.elapsed().as_secs_f64();
    ensure!(keys == load.ops, "{keys} keys of {}", load.ops);

    engine.resume()?;
    let more = load.ops + (load.ops / PACED_PART).max(1);
    let paced = apply(&*engine, load, (load.ops, more), Some(apply_per_s * PACED))?;
    engine.settle().context("settle")?;
    Ok(Figures {
        apply_per_s,
        settle_s: settled.as_secs_f64(),
        cpu_us_per_op: cpu.as_secs_f64() * 1e6 / load.ops as f64,
        write_amplification: written as f64 / load.payload(load.ops) as f64,
        worst_batch_ms: worst.as_secs_f64() * 1e3,
        worst_paced_batch_ms: paced.as_secs_f64() * 1e3,
        gets_per_s,
        scan_per_s,
    })
}

impl Ask {
    /// Has a process of this very program measure.
    pub fn elsewhere(&self) -> Result<Figures> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let Load { ops, batch, value, prefixes, memtable, reading, seed } = self.load;
        let output = Command::new(program)
            .args(["apply", "--which", self.which.name()])
            .arg("--place")
            .arg(&self.place)
            .args(["--ops", &ops.to_string(), "--batch", &batch.to_string()])
            .args(["--value", &value.to_string(), "--prefixes", &prefixes.to_string()])
            .args(["--memtable", &memtable.to_string(), "--reading", &reading.to_string()])
            .args(["--seed", &seed.to_string()])
            .output()
            .context("cannot start a process")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {said}", self.which.name());
        serde_json::from_slice(&output.stdout).context("what the process said")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_engine_applies_settles_and_gives_all_of_it_back() {
        let load = Load {
            ops: 20_000,
            batch: 100,
            value: 128,
            prefixes: 3,
            memtable: 256 << 10,
            reading: 0.02,
            seed: 3,
        };
        for which in Which::all() {
            let dir = tempfile::tempdir().unwrap();
            let figures = measure(which, &load, dir.path()).unwrap();
            assert!(figures.apply_per_s > 0.0 && figures.gets_per_s > 0.0, "{figures:?}");
            assert!(figures.scan_per_s > 0.0 && figures.cpu_us_per_op > 0.0, "{figures:?}");
            if cfg!(target_os = "linux") {
                assert!(figures.write_amplification >= 0.9, "{which:?}: {figures:?}");
            }
        }
    }
}
