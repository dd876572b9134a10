//! The profiles: what is set up, driven and read back.

#[cfg(feature = "rivals")]
pub mod beside;
mod log;
mod nodes;

use crate::args::{Plan, Profile};
use crate::report::Report;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

/// Runs the plan's profile.
pub fn run(plan: &Plan) -> Result<Report> {
    match plan.profile {
        Profile::Log => log::run(plan),
        Profile::Durable | Profile::Consensus | Profile::Disk => nodes::run(plan),
    }
}

/// A directory for a run: the one asked for, which stays, or a temporary one, which goes.
#[derive(Debug)]
pub(crate) struct Place {
    path: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

impl Place {
    /// Makes sure of an empty directory.
    pub fn new(wanted: Option<&Path>) -> Result<Place> {
        let Some(path) = wanted else {
            let temporary = tempfile::Builder::new().prefix("catamaran-load-").tempdir()?;
            return Ok(Place { path: temporary.path().to_owned(), _temporary: Some(temporary) });
        };
        std::fs::create_dir_all(path)?;
        if std::fs::read_dir(path)?.next().is_some() {
            bail!("{} is not empty: the run needs a fresh directory", path.display());
        }
        Ok(Place { path: path.to_owned(), _temporary: None })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
