//! How a run can end other than well, and which exit code says so.

use std::fmt;
use std::process::ExitCode;

/// Why the work stopped.
#[derive(Debug)]
pub enum Failure {
    /// What is asked for makes no sense, or would do harm: exit 2.
    Usage(String),
    /// The directory cannot be opened or holds no log: exit 3.
    Open(String),
    /// The log is damaged beyond what a finding can tell: exit 4.
    Corrupt(String),
    /// Standard output cannot be written: exit 3. If its reader has gone, that is its right: exit 0.
    Output(std::io::Error),
}

/// What a verb found out, once its page is printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Exit 0.
    Fine,
    /// Corruption, or a difference: exit 4.
    Bad,
}

impl Verdict {
    pub fn bad_if(bad: bool) -> Verdict {
        if bad { Verdict::Bad } else { Verdict::Fine }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::Output(error)
    }
}

impl From<catamaran::Error> for Failure {
    fn from(error: catamaran::Error) -> Failure {
        use catamaran::Error::{Corruption, Malformed};
        match error {
            Corruption { .. } | Malformed { .. } => Failure::Corrupt(error.to_string()),
            _ => Failure::Open(error.to_string()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Usage(what) | Failure::Open(what) | Failure::Corrupt(what) => {
                f.write_str(what)
            }
            Failure::Output(error) => write!(f, "cannot write to standard output: {error}"),
        }
    }
}

/// The exit code of a run.
pub fn exit_code(result: &Result<Verdict, Failure>) -> ExitCode {
    ExitCode::from(match result {
        Ok(Verdict::Fine) => 0,
        Ok(Verdict::Bad) | Err(Failure::Corrupt(_)) => 4,
        Err(Failure::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => 0,
        Err(Failure::Usage(_)) => 2,
        Err(Failure::Open(_) | Failure::Output(_)) => 3,
    })
}
