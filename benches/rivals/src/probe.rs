//! What wants a process of its own: opening (nothing of the log in memory), what that makes the disk
//! read, and the heap it takes (under an allocator that counts, in the binary `catamaran-rivals-heap`).

use crate::engine::{self, Setup, Which};
use crate::machine;
use crate::space::{self, READ_GROUPS, Shape};
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// What a child process is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Probe {
    /// Make the log, for a profiler to look at the others.
    Fill,
    /// Open the log.
    Open,
    /// Open it, make it cold, read some groups back.
    Read,
}

/// The log in question, as arguments of the child.
#[derive(Clone, PartialEq, Eq, Debug, Args)]
pub struct Ask {
    /// Which engine.
    #[arg(long, value_parser = Which::parse)]
    pub which: Which,
    /// Where it is.
    #[arg(long)]
    pub dir: PathBuf,
    /// Groups in it.
    #[arg(long)]
    pub groups: u64,
    /// Entries of each.
    #[arg(long)]
    pub entries: u64,
    /// Entries of a group in one write, where the log is made.
    #[arg(long, default_value_t = space::TOGETHER)]
    pub each: u64,
}

/// An opening.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Opened {
    /// How long it took.
    pub seconds: f64,
    /// What the disk delivered.
    pub bytes_read: u64,
}

/// Groups read back cold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Readback {
    /// What the disk delivered.
    pub bytes_read: u64,
    /// Data of the entries.
    pub bytes_wanted: u64,
}

impl Ask {
    fn child<T: DeserializeOwned>(&self, program: &Path, first: &[&str]) -> Result<T> {
        let output = Command::new(program)
            .args(first)
            .args(["--which", self.which.name()])
            .arg("--dir")
            .arg(&self.dir)
            .args(["--groups", &self.groups.to_string()])
            .args(["--entries", &self.entries.to_string()])
            .output()
            .with_context(|| program.display().to_string())?;
        if !output.status.success() {
            bail!("probe of {}: {}", self.which.name(), String::from_utf8_lossy(&output.stderr));
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Does it in a child process: this program again.
    pub fn run<T: DeserializeOwned>(&self, probe: Probe) -> Result<T> {
        let name = match probe {
            Probe::Fill => "fill",
            Probe::Open => "open",
            Probe::Read => "read",
        };
        self.child(&std::env::current_exe()?, &["probe", name])
    }

    /// Heap bytes that the open log takes, by the binary beside this one.
    pub fn heap(&self) -> Result<u64> {
        self.child(&std::env::current_exe()?.with_file_name("catamaran-rivals-heap"), &[])
    }

    /// Opens the log, in this process.
    pub fn open(&self) -> Result<Box<dyn engine::Engine>> {
        machine::raise_limits();
        let setup = Setup { groups: self.groups, window: 1, files: space::files(self.which) };
        let engine = engine::open(self.which, &self.dir, setup)?;
        let found = engine.last_index(self.groups);
        if found != self.entries {
            bail!("{}: the last group ends at {found}, not {}", self.which.name(), self.entries);
        }
        Ok(engine)
    }

    /// Makes it, as `space` does.
    pub fn filled(&self) -> Result<()> {
        machine::raise_limits();
        let shape = Shape { groups: self.groups, entries: self.entries, each: self.each };
        space::make(self.which, &self.dir, shape)
    }

    /// Opens the log and tells what it took.
    pub fn opened(&self) -> Result<Opened> {
        let before = machine::bytes_read();
        let began = Instant::now();
        let _engine = self.open()?;
        let seconds = began.elapsed().as_secs_f64();
        Ok(Opened { seconds, bytes_read: machine::bytes_read() - before })
    }

    /// Reads some groups, far from one another, from the cold.
    pub fn read_back(&self) -> Result<Readback> {
        let engine = self.open()?;
        machine::make_cold(&self.dir)?;
        let before = machine::bytes_read();
        let mut bytes_wanted = 0;
        for n in 0..READ_GROUPS.min(self.groups) {
            let group = 1 + n * self.groups / READ_GROUPS.min(self.groups);
            bytes_wanted += engine.read(group, 1, self.entries + 1)?;
        }
        Ok(Readback { bytes_read: machine::bytes_read() - before, bytes_wanted })
    }
}
