//! Opening a directory and reading it until two looks agree.
//!
//! A live node may write, rotate and purge between two of our reads, so a single look can show a hole
//! that was never there. Real damage stays where it is: only what two looks in a row find at the same
//! place, with the same checksums, is believed.

use crate::failure::Failure;
use crate::model::{Kept, Model, name};
use crate::output::tell;
use catamaran::env::Disk;
use catamaran::env::os::OsDisk;
use catamaran::error::Error;
use catamaran::log::inspect::{Finding, FindingKind, Inspector, RecordView, Report};
use catamaran::log::{Entry, GroupId};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A log as it was found.
pub struct Loaded<T> {
    pub model: Model<T>,
    /// Verification of the same files.
    pub report: Report,
}

impl<T> Loaded<T> {
    /// Warns on standard error when acknowledged bytes are damaged: what the verb shows is then
    /// incomplete.
    pub fn warn(&self) -> bool {
        let mut rot = self.report.findings.iter().filter(|found| found.kind == FindingKind::Rot);
        let Some(first) = rot.next() else { return false };
        let (file, offset, what) = (name(&first.file), first.offset, &first.detail);
        tell(format_args!(
            "the log is damaged, what is shown is incomplete; see `verify` ({file} at \
             {offset}: {what})"
        ));
        true
    }
}

/// A directory that holds segments.
#[derive(Clone, Debug)]
pub struct LogDir {
    pub path: PathBuf,
}

/// How often to look again while findings do not repeat themselves.
const LOOKS_MAX: usize = 8;
/// Between two looks.
pub const PAUSE: Duration = Duration::from_millis(30);

impl LogDir {
    /// Finds the log in a data directory, or takes the directory as the log's own.
    pub fn find(dir: &Path) -> Result<LogDir, Failure> {
        let inner = dir.join("log");
        let path = if inner.is_dir() { inner } else { dir.to_owned() };
        if !holds_log(&path)? {
            return Err(Failure::Open(format!("{}: no log here", dir.display())));
        }
        Ok(LogDir { path })
    }

    /// Whether the log is there no more: its directory, or all that was in it.
    pub fn is_gone(&self) -> bool {
        match holds_log(&self.path) {
            Ok(there) => !there,
            Err(Error::Io { source, .. }) => source.kind() == ErrorKind::NotFound,
            Err(_) => false,
        }
    }

    /// What can be read of it: files that cannot be are for verification to name.
    pub fn inspect(&self) -> catamaran::Result<Inspector> {
        Inspector::survey(&OsDisk, &self.path)
    }

    /// Spare files: how many, and their bytes.
    pub fn spares(&self) -> Result<(u64, u64), Failure> {
        let names = OsDisk.list(&self.path)?;
        let spares = names.iter().filter(|name| name.extension().is_some_and(|e| e == "free"));
        // One that became a segment meanwhile counts there.
        let sizes = spares.filter_map(|name| std::fs::metadata(self.path.join(name)).ok());
        Ok(sizes.fold((0, 0), |(n, bytes), size| (n + 1, bytes + size.len())))
    }

    /// Reads everything.
    pub fn load<T: Kept>(
        &self,
        mut keep: impl FnMut(&RecordView, GroupId, &Entry) -> T,
    ) -> Result<Loaded<T>, Failure> {
        let mut before: Result<Vec<Finding>, String> = Ok(Vec::new());
        let mut look = 0;
        loop {
            look += 1;
            let last = look >= LOOKS_MAX;
            match self.look(&mut keep) {
                Ok(mut loaded) => {
                    let is_rot = |finding: &Finding| finding.kind == FindingKind::Rot;
                    let rot = loaded.report.findings.iter().filter(|finding| is_rot(finding));
                    let rot: Vec<Finding> = rot.cloned().collect();
                    let seen = before.unwrap_or_default();
                    let whole = rot.is_empty() && !loaded.model.is_patchy();
                    if whole || last || rot.iter().any(|finding| seen.contains(finding)) {
                        let real = |finding: &Finding| !is_rot(finding) || seen.contains(finding);
                        loaded.report.findings.retain(real);
                        return Ok(loaded);
                    }
                    before = Ok(rot);
                }
                Err(error) => {
                    let text = error.to_string();
                    if last || before.as_ref().is_err_and(|before| *before == text) {
                        return Err(error.into());
                    }
                    before = Err(text);
                }
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn look<T: Kept>(
        &self,
        keep: &mut impl FnMut(&RecordView, GroupId, &Entry) -> T,
    ) -> catamaran::Result<Loaded<T>> {
        let loaded = read(&self.inspect()?, keep)?;
        if loaded.model.segments.is_empty() && !loaded.report.is_rotten() {
            // Spares alone: its first opening did not come to an end, or its segments were taken away.
            return Err(Error::io("find a segment in", &self.path, ErrorKind::NotFound.into()));
        }
        Ok(loaded)
    }
}

/// Whether something in the directory is named like a segment or a spare. If that is a link, say, it is for
/// verification to tell.
fn holds_log(dir: &Path) -> catamaran::Result<bool> {
    let mut names = OsDisk.list(dir)?;
    names.extend(OsDisk.list_irregular(dir)?.into_iter().map(|other| other.name));
    let is_ours = |name: &PathBuf| name.extension().is_some_and(|e| e == "seg" || e == "free");
    Ok(names.iter().any(is_ours))
}

/// Reads everything, once.
pub fn read<T: Kept>(
    inspector: &Inspector,
    keep: &mut impl FnMut(&RecordView, GroupId, &Entry) -> T,
) -> catamaran::Result<Loaded<T>> {
    let report = inspector.verify()?;
    let mut model = Model::new(inspector.segments()?);
    for record in inspector.records() {
        let record = record?;
        // A torn record was never acknowledged, and nothing after it counts.
        if !record.damaged.is_empty() && record.seq > report.durable {
            break;
        }
        model.record(&record, keep);
    }
    model.close(report.durable);
    Ok(Loaded { model, report })
}
