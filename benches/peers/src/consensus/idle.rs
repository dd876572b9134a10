//! Groups that do nothing: what they cost in processor time and memory. Each figure comes from a process of its own,
//! whose memory nobody else has grown.

use super::Which;
use crate::used;
use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::process::Command;
use std::time::{Duration, Instant};

/// What a process is asked to look at.
#[derive(Args, Clone, Debug)]
pub struct Ask {
    /// Which peer.
    #[arg(long, value_parser = Which::parse)]
    pub which: Which,
    /// Groups of three replicas.
    #[arg(long)]
    pub groups: usize,
    /// Milliseconds to wait once every group has a leader.
    #[arg(long)]
    pub settle_ms: u64,
    /// Milliseconds to count processor time for.
    #[arg(long)]
    pub look_ms: u64,
}

/// What it sees.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Seen {
    /// Processor time, as a part of one core.
    pub cpu: f64,
    /// Resident memory of the process at the end.
    pub resident_bytes: u64,
}

impl Ask {
    /// Looks, in this process.
    pub fn look(&self) -> Result<Seen> {
        let peer = super::open(self.which, self.groups)?;
        std::thread::sleep(Duration::from_millis(self.settle_ms));
        let (began, cpu) = (Instant::now(), used::cpu());
        std::thread::sleep(Duration::from_millis(self.look_ms));
        let cpu = used::cpu().saturating_sub(cpu).as_secs_f64() / began.elapsed().as_secs_f64();
        let seen = Seen { cpu, resident_bytes: used::resident_bytes() };
        peer.close()?;
        Ok(seen)
    }

    /// Has a process of this very program look.
    fn elsewhere(&self) -> Result<Seen> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let output = Command::new(program)
            .args(["look", "--which", self.which.name()])
            .args(["--groups", &self.groups.to_string()])
            .args(["--settle-ms", &self.settle_ms.to_string()])
            .args(["--look-ms", &self.look_ms.to_string()])
            .output()
            .context("cannot start a process")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {said}", self.which.name());
        serde_json::from_slice(&output.stdout).context("what the process said")
    }
}

/// Idle groups of one peer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Idle {
    /// Which peer.
    pub which: Which,
    /// Groups of three replicas.
    pub groups: usize,
    /// With so many groups, each repetition.
    pub many: Vec<Seen>,
    /// With one group: what the nodes themselves take.
    pub one: Vec<Seen>,
}

impl Idle {
    /// Looks at peers in turn, `repetitions` times.
    pub fn measure(
        peers: &[Which],
        groups: usize,
        times: (Duration, Duration),
        repetitions: usize,
    ) -> Result<Vec<Idle>> {
        ensure!(groups > 1, "memory per group wants more than one group");
        let (settle, look) = times;
        let mut all: Vec<Idle> = peers
            .iter()
            .map(|which| Idle { which: *which, groups, many: Vec::new(), one: Vec::new() })
            .collect();
        for repetition in 0..repetitions {
            for idle in &mut all {
                let ask = |groups| Ask {
                    which: idle.which,
                    groups,
                    settle_ms: settle.as_millis() as u64,
                    look_ms: look.as_millis() as u64,
                };
                let one = ask(1).elsewhere()?;
                let many = ask(groups).elsewhere()?;
                idle.one.push(one);
                idle.many.push(many);
                eprintln!(
                    "{repetition} idle {}: {:.1} % of a core, {} KiB with {groups} groups, {} KiB with one",
                    idle.which.name(),
                    many.cpu * 100.0,
                    many.resident_bytes / 1024,
                    one.resident_bytes / 1024,
                );
            }
        }
        Ok(all)
    }

    /// Memory that a group more takes, all its replicas, of each repetition.
    pub fn bytes_per_group(&self) -> impl Iterator<Item = f64> {
        let groups = (self.groups - 1) as f64;
        let pairs = self.many.iter().zip(&self.one);
        pairs.map(move |(many, one)| {
            (many.resident_bytes as f64 - one.resident_bytes as f64) / groups
        })
    }

    /// Processor time of all groups, as a part of a core, of each repetition.
    pub fn cpu(&self) -> impl Iterator<Item = f64> {
        self.many.iter().map(|seen| seen.cpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_cluster_is_looked_at() {
        let ask = Ask { which: Which::Catamaran, groups: 3, settle_ms: 1, look_ms: 20 };
        let seen = ask.look().unwrap();
        assert!(seen.cpu >= 0.0);
        if cfg!(target_os = "linux") {
            assert!(seen.resident_bytes > 0);
        }
    }

    #[test]
    fn memory_per_group_leaves_out_what_the_nodes_take() {
        let seen = |cpu, resident_bytes| Seen { cpu, resident_bytes };
        let idle = Idle {
            which: Which::Catamaran,
            groups: 11,
            many: vec![seen(0.5, 2_000), seen(0.25, 3_000)],
            one: vec![seen(0.0, 1_000), seen(0.0, 1_000)],
        };
        assert_eq!(idle.bytes_per_group().collect::<Vec<_>>(), [100.0, 200.0]);
        assert_eq!(idle.cpu().collect::<Vec<_>>(), [0.5, 0.25]);
    }
}
