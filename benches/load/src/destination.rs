//! Where a result goes. Opened before the run: a file that cannot be made must not cost a run.

use crate::report::Report;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

/// Where the JSON goes; the table goes to standard output unless the JSON does.
///
/// * A file that was there keeps what it holds until there is a result to replace it.
/// * A file that was made for a run that failed is removed again.
#[derive(Debug)]
pub enum Destination {
    /// The table alone.
    Table,
    /// JSON on standard output, no table.
    StandardOutput,
    /// JSON in a file, the table on standard output.
    File(JsonFile),
}

/// A file that waits for its JSON.
#[derive(Debug)]
pub struct JsonFile {
    file: File,
    path: PathBuf,
    /// It was made for this run and holds nothing yet.
    fresh: bool,
}

impl JsonFile {
    fn open(path: &Path) -> std::io::Result<JsonFile> {
        let fresh = !path.exists();
        let file = File::options().write(true).create(true).truncate(false).open(path)?;
        Ok(JsonFile { file, path: path.to_owned(), fresh })
    }

    fn replace(&mut self, text: &str) -> std::io::Result<()> {
        self.fresh = false;
        // A pipe or a device has neither a length nor a place.
        if self.file.metadata()?.is_file() {
            self.file.set_len(0)?;
            self.file.rewind()?;
        }
        self.file.write_all(text.as_bytes())
    }
}

impl Drop for JsonFile {
    fn drop(&mut self) {
        if self.fresh {
            // If it stays, it stays empty.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// What went wrong when the answer was there and could not be printed.
pub const UNWRITTEN: &str = "cannot write to standard output";

/// Prints to standard output.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.context(UNWRITTEN)
}

impl Destination {
    /// Opens what `--json` names.
    pub fn open(json: Option<&Path>) -> Result<Destination> {
        match json {
            None => Ok(Destination::Table),
            Some(path) if path == Path::new("-") => Ok(Destination::StandardOutput),
            Some(path) => JsonFile::open(path)
                .map(Destination::File)
                .with_context(|| format!("cannot write {}", path.display())),
        }
    }

    /// Writes the result.
    pub fn publish(self, report: &Report) -> Result<()> {
        self.put(&(serde_json::to_string_pretty(report)? + "\n"), &report.table())
    }

    /// Writes a result: as JSON, as a table.
    pub fn put(mut self, text: &str, table: &str) -> Result<()> {
        match &mut self {
            Destination::Table => {}
            Destination::StandardOutput => return print(text),
            Destination::File(json) => json
                .replace(text)
                .with_context(|| format!("cannot write {}", json.path.display()))?,
        }
        print(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_fails_leaves_the_place_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (new, old) = (dir.path().join("new.json"), dir.path().join("old.json"));
        std::fs::write(&old, "a longer result from before").unwrap();
        for path in [&new, &old] {
            drop(Destination::open(Some(path)).unwrap());
        }
        assert!(!new.exists());
        assert_eq!(std::fs::read_to_string(&old).unwrap(), "a longer result from before");

        for path in [&new, &old] {
            JsonFile::open(path).unwrap().replace("{}\n").unwrap();
            assert_eq!(std::fs::read_to_string(path).unwrap(), "{}\n");
        }
        assert!(Destination::open(Some(&dir.path().join("none/x"))).is_err());
        assert!(Destination::open(Some(dir.path())).is_err());
    }
}
