//! Log stores under `catamaran::testkit`: ours, and the rivals through adapters that use their public API
//! only. Every check runs in a process of its own, for some of these stores share state within a process,
//! and one that dies or hangs must not take the others' verdicts along.
//!
//! What a store cannot do at all is "unsupported" and no failure. A verdict is of the adapter too: each says
//! at its head how it translates.

mod ours;
#[cfg(feature = "rivals")]
mod raft_engine;
#[cfg(feature = "rivals")]
mod raft_log;
#[cfg(feature = "rivals")]
mod shaky;
mod table;

use anyhow::{Context, Result, bail};
use catamaran::testkit::{self, Factory, conformance};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Who is examined.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Candidate {
    /// `catamaran::log`.
    Catamaran,
    /// raft-engine as it comes: damage at the end of its last file is cut.
    RaftEngine,
    /// In its strictest recovery mode.
    RaftEngineAbsolute,
    /// raft-log, a directory for each group.
    RaftLog,
    /// The same, told not to cut an incomplete record at the end.
    RaftLogStrict,
}

impl Candidate {
    /// All that this build knows.
    pub fn all() -> Vec<Candidate> {
        let mut all = vec![Candidate::Catamaran];
        if cfg!(feature = "rivals") {
            all.extend([Candidate::RaftEngine, Candidate::RaftEngineAbsolute]);
            all.extend([Candidate::RaftLog, Candidate::RaftLogStrict]);
        }
        all
    }

    /// On the command line.
    pub fn name(self) -> &'static str {
        match self {
            Candidate::Catamaran => "catamaran",
            Candidate::RaftEngine => "raft-engine",
            Candidate::RaftEngineAbsolute => "raft-engine-absolute",
            Candidate::RaftLog => "raft-log",
            Candidate::RaftLogStrict => "raft-log-strict",
        }
    }

    /// In tables, with the version.
    pub fn title(self) -> String {
        match self {
            Candidate::Catamaran => format!("catamaran {}", env!("CARGO_PKG_VERSION")),
            Candidate::RaftEngine => "raft-engine 0.4.2".into(),
            Candidate::RaftEngineAbsolute => "raft-engine 0.4.2, `AbsoluteConsistency`".into(),
            Candidate::RaftLog => "raft-log 0.4.6".into(),
            Candidate::RaftLogStrict => "raft-log 0.4.6, nothing truncated".into(),
        }
    }

    /// By name.
    pub fn parse(name: &str) -> Result<Candidate, String> {
        let known = Candidate::all();
        known.iter().copied().find(|candidate| candidate.name() == name).ok_or_else(|| {
            let names: Vec<&str> = known.iter().map(|candidate| candidate.name()).collect();
            format!("this build knows {}", names.join(", "))
        })
    }

    fn factory(self, root: &Path) -> Result<Box<dyn Factory>> {
        Ok(match self {
            Candidate::Catamaran => Box::new(ours::Ours::new(root)),
            #[cfg(feature = "rivals")]
            Candidate::RaftEngine => {
                let strict = Strictness::Default;
                Box::new(raft_engine::EngineFactory::new(root.to_owned(), strict))
            }
            #[cfg(feature = "rivals")]
            Candidate::RaftEngineAbsolute => {
                let strict = Strictness::Absolute;
                Box::new(raft_engine::EngineFactory::new(root.to_owned(), strict))
            }
            #[cfg(feature = "rivals")]
            Candidate::RaftLog => {
                Box::new(raft_log::LogFactory::new(root.to_owned(), Strictness::Default))
            }
            #[cfg(feature = "rivals")]
            Candidate::RaftLogStrict => {
                Box::new(raft_log::LogFactory::new(root.to_owned(), Strictness::Absolute))
            }
            #[cfg(not(feature = "rivals"))]
            _ => bail!("built without the feature `rivals`"),
        })
    }
}

/// How a store is to take damage at the end of its log when it is opened.
#[cfg(feature = "rivals")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Strictness {
    /// As it comes: cut it.
    Default,
    /// Refuse.
    Absolute,
}

/// How one check of one store ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It does what it owes.
    Pass,
    /// It does not.
    Fail,
    /// It lacks what the check is about.
    Unsupported,
}

/// One check of one store.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// Name of the check.
    pub check: String,
    /// How it ended.
    pub verdict: Verdict,
    /// Why, unless it passed.
    pub why: Option<String>,
}

/// One store's findings.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Column {
    /// Whose.
    pub candidate: Candidate,
    /// In the order of the suite.
    pub findings: Vec<Finding>,
}

/// A check of the suite, as it was when it ran.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Check {
    /// Its name.
    pub name: String,
    /// What goes wrong in a cluster whose store does not do it.
    pub story: String,
}

/// Everybody's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Conformance {
    /// The commit of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The suite.
    pub checks: Vec<Check>,
    /// In the order in which they were asked for.
    pub columns: Vec<Column>,
}

/// A check that a process of its own is to run.
#[derive(Clone, PartialEq, Eq, Debug, Args)]
pub struct Ask {
    /// Who is examined.
    #[arg(long, value_parser = Candidate::parse)]
    pub candidate: Candidate,
    /// Which check.
    #[arg(long)]
    pub check: String,
    /// An empty directory.
    #[arg(long)]
    pub dir: PathBuf,
}

/// A check that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(300);
/// Reasons are cut to about this length.
const WHY_BYTES: usize = 260;

impl Ask {
    /// Runs the check in this process.
    pub fn run(&self) -> Result<Finding> {
        let factory = self.candidate.factory(&self.dir)?;
        let report = conformance::run_named(factory.as_ref(), &[&self.check]);
        let Some(verdict) = report.verdict(&self.check) else { bail!("no check {}", self.check) };
        let (verdict, why) = match verdict {
            testkit::Verdict::Passed => (Verdict::Pass, None),
            testkit::Verdict::Failed(why) => (Verdict::Fail, Some(why)),
            testkit::Verdict::Skipped(why) => (Verdict::Unsupported, Some(why)),
        };
        let why = why.map(|why| self.tidy(why));
        Ok(Finding { check: self.check.clone(), verdict, why })
    }

    /// One line, without the names of directories that are gone by then, and not too long.
    fn tidy(&self, why: &str) -> String {
        let why = why.replace(&*self.dir.to_string_lossy(), "DIR");
        let mut why = why.split_whitespace().collect::<Vec<_>>().join(" ");
        if let Some(end) = (WHY_BYTES..why.len()).find(|at| why.is_char_boundary(*at)) {
            why.truncate(end);
            why.push_str("...");
        }
        why
    }

    /// Runs it in a process of its own. One that dies or hangs has failed the check.
    fn run_apart(&self) -> Result<Finding> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["check", "--candidate", self.candidate.name(), "--check", &self.check])
            .arg("--dir")
            .arg(&self.dir)
            .stdout(Stdio::piped())
            // Panics of the stores under test: the verdict says what they were.
            .stderr(Stdio::null())
            .spawn()?;
        let end = Instant::now() + PATIENCE;
        let fail = |why: String| Finding {
            check: self.check.clone(),
            verdict: Verdict::Fail,
            why: Some(why),
        };
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() >= end {
                child.kill()?;
                child.wait()?;
                return Ok(fail(format!("no end after {} s", PATIENCE.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut said = String::new();
        if let Some(mut stdout) = child.stdout.take() {
            stdout.read_to_string(&mut said)?;
        }
        if !status.success() {
            return Ok(fail(format!("the process died: {status}")));
        }
        Ok(serde_json::from_str(&said)?)
    }
}

/// Runs every check for each of these, below `dir`.
pub fn run(candidates: &[Candidate], dir: &Path) -> Result<Conformance> {
    let mut columns = Vec::new();
    for candidate in candidates.iter().copied() {
        let mut findings = Vec::new();
        for check in conformance::checks() {
            let place = tempfile::tempdir_in(dir)?;
            let check = check.name.to_owned();
            let ask = Ask { candidate, check, dir: place.path().to_owned() };
            let finding =
                ask.run_apart().with_context(|| format!("{} {}", candidate.name(), ask.check))?;
            eprintln!(
                "{} {}: {:?} {}",
                candidate.name(),
                finding.check,
                finding.verdict,
                finding.why.as_deref().unwrap_or("")
            );
            findings.push(finding);
        }
        columns.push(Column { candidate, findings });
    }
    let checks = conformance::checks().map(|check| Check {
        name: check.name.to_owned(),
        story: check.story.split_whitespace().collect::<Vec<_>>().join(" "),
    });
    Ok(Conformance { commit: None, checks: checks.collect(), columns })
}
