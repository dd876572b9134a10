//! What came out.

use super::conformance::Check;
use super::store::Failure;
use std::fmt;

/// How one check ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The store does what it owes.
    Passed,
    /// It does not: what was expected and what was found.
    Failed(String),
    /// It lacks an ability that the check needs.
    Skipped(String),
}

/// One check and how it ended.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The check.
    pub check: &'static Check,
    /// How it ended.
    pub verdict: Verdict,
}

/// All of them. Its `Display` is a table, with the story of what failed.
#[derive(Clone, Debug)]
pub struct Report {
    /// The implementation.
    pub store: String,
    /// In the order they ran.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing failed. Skipped checks do not count.
    pub fn passed(&self) -> bool {
        self.failed().next().is_none()
    }

    /// What failed.
    pub fn failed(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|f| matches!(f.verdict, Verdict::Failed(_)))
    }

    /// What was skipped.
    pub fn skipped(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|f| matches!(f.verdict, Verdict::Skipped(_)))
    }

    /// How the check of that name ended, if it ran.
    pub fn verdict(&self, check: &str) -> Option<&Verdict> {
        self.findings.iter().find(|f| f.check.name == check).map(|f| &f.verdict)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.store)?;
        for finding in &self.findings {
            let name = finding.check.name;
            match &finding.verdict {
                Verdict::Passed => writeln!(f, "  pass  {name}")?,
                Verdict::Skipped(why) => writeln!(f, "  skip  {name}: {why}")?,
                Verdict::Failed(why) => {
                    writeln!(f, "  FAIL  {name}: {why}")?;
                    writeln!(f, "        {}", finding.check.story)?;
                }
            }
        }
        let failed = self.failed().count();
        let skipped = self.skipped().count();
        let passed = self.findings.len() - failed - skipped;
        writeln!(f, "  {passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// Why a check did not pass, on its way up.
#[derive(Clone, Debug)]
pub(super) enum Trouble {
    Failed(String),
    Skipped(String),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Trouble {
        match failure {
            Failure::Unsupported(what) => Trouble::Skipped(what.to_owned()),
            other => Trouble::Failed(format!("unexpected answer: {other}")),
        }
    }
}

/// What a check returns.
pub(super) type Outcome<T = ()> = Result<T, Trouble>;

/// Fails the check, with a formatted reason.
macro_rules! fail {
    ($($what:tt)*) => {
        return Err($crate::testkit::report::Trouble::Failed(format!($($what)*)))
    };
}

/// Fails the check unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $($what:tt)*) => {
        if !$holds {
            return Err($crate::testkit::report::Trouble::Failed(format!($($what)*)));
        }
    };
}

pub(super) use {ensure, fail};
