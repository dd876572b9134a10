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
const PAUSE: Duration = Duration::from_millis(30);

impl LogDir {
    /// Finds the log in a data directory, or takes the directory as the log's own.
    pub fn find(dir: &Path) -> Result<LogDir, Failure> {
        let inner = dir.join("log");
        let path = if inner.is_dir() { inner } else { dir.to_owned() };
        let names = OsDisk.list(&path)?;
        let is_ours = |name: &PathBuf| name.extension().is_some_and(|e| e == "seg" || e == "free");
        if !names.iter().any(is_ours) {
            return Err(Failure::Open(format!("{}: no log here", dir.display())));
        }
        Ok(LogDir { path })
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
        let mut loaded = read(&self.inspect()?, keep)?;
        loaded.report.findings.extend(no_files(&self.path)?);
        if loaded.model.segments.is_empty() && !loaded.report.is_rotten() {
            // Spares alone: its first opening did not come to an end, or its segments were taken away.
            return Err(Error::io("find a segment in", &self.path, ErrorKind::NotFound.into()));
        }
        Ok(loaded)
    }
}

/// What is named like a segment and is no file: a link, whatever it points to, a directory. The log engine takes no
/// notice of it, so the records that should be there are missed only if others follow them.
pub fn no_files(dir: &Path) -> catamaran::Result<Vec<Finding>> {
    let failed = |error| Error::io("list", dir, error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let file = entry.path();
        let kind = match entry.file_type() {
            Ok(kind) => kind,
            // Renamed or removed since it was listed.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        let what = match std::fs::read_link(&file) {
            _ if kind.is_file() || !is_segment(&file) => continue,
            Ok(to) if file.exists() => format!("a link to {}", to.display()),
            Ok(to) => format!("a link to {}, where nothing is", to.display()),
            Err(_) if kind.is_dir() => "a directory".to_owned(),
            Err(_) => "no regular file".to_owned(),
        };
        found.push(Finding {
            detail: format!("named like a segment, but {what}: the log engine does not read it"),
            file,
            offset: 0,
            kind: FindingKind::Rot,
            expected: 0,
            found: 0,
            group: None,
        });
    }
    found.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(found)
}

/// Whether a file of this name is a segment: sixteen digits and the ending.
fn is_segment(path: &Path) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let is_number = stem.len() == 16 && stem.bytes().all(|byte| byte.is_ascii_digit());
    is_number && path.extension().is_some_and(|ext| ext == "seg")
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
