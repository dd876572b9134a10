//! The findings as Markdown.

use super::{Candidate, Conformance, Verdict};
use std::fmt::Write as _;

const COMMAND: &str = "cargo run --release -p catamaran-rivals --features rivals -- conformance \
                       --keep benches/rivals --commit $(git rev-parse --short=12 HEAD)";

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Fail => "**fails**",
            Verdict::Unsupported => "-",
        }
    }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;")
}

/// Where a verdict says less than it seems to.
fn notes(candidate: Candidate) -> &'static str {
    match candidate {
        Candidate::Catamaran => {
            "on the real disk; the three checks that need a disk with faults on the simulated one"
        }
        Candidate::RaftEngineAbsolute => {
            "the same in its strictest recovery mode (the default tolerates a damaged tail)"
        }
        Candidate::RaftEngine => {
            "with files of 64 KiB, purged from 128 KiB on, without compression (the suite would not fill \
             files otherwise); faults through its own seam for file systems, \
             with power cuts that spare names and lengths; \
             a panic of its sync counts as an error; it answers a reader whose file was purged under its \
             hands with `Corruption`"
        }
        Candidate::RaftLog => {
            "a directory of logs, one for each group, in chunks of 64 KiB; batches are one operation after \
             the other; its read yields what is there of a range and says nothing of the rest (nor \
             to a reader that a compaction overtook); it has no seam for faults"
        }
        Candidate::RaftLogStrict => {
            "the same with `truncate_incomplete_record` off (it is on by default)"
        }
    }
}

impl Conformance {
    /// What is kept as documentation.
    pub fn document(&self) -> String {
        let commit = self.commit.as_ref().map(|commit| format!("Ours is of {commit}. "));
        format!(
            "# Stores of raft logs under `catamaran::testkit`\n\nMade by `{COMMAND}`; do not edit. {}Each \
             verdict is of a run in a process of its own.\nA dash: the store has no such notion, or no way \
             to make that fault.\n\n{}",
            commit.unwrap_or_default(),
            self.table()
        )
    }

    /// A table of verdicts, then why.
    pub fn table(&self) -> String {
        let mut out = String::from("| check |");
        for column in &self.columns {
            let _ = write!(out, " {} |", column.candidate.title());
        }
        let _ = writeln!(out, "\n|---|{}", "---|".repeat(self.columns.len()));
        for check in &self.checks {
            let _ = write!(out, "| {} |", check.name);
            for column in &self.columns {
                let found = column.findings.iter().find(|finding| finding.check == check.name);
                let _ = write!(out, " {} |", found.map_or("", |finding| finding.verdict.word()));
            }
            out.push('\n');
        }
        let _ = write!(out, "| passed, failed, unsupported |");
        for column in &self.columns {
            let count = |verdict| column.findings.iter().filter(|f| f.verdict == verdict).count();
            let [passed, failed, unsupported] =
                [Verdict::Pass, Verdict::Fail, Verdict::Unsupported].map(count);
            let _ = write!(out, " {passed}, {failed}, {unsupported} |");
        }
        out.push_str("\n\n");
        for column in &self.columns {
            let candidate = column.candidate;
            let _ = writeln!(out, "- {}: {}.", candidate.title(), notes(candidate));
        }
        self.reasons(&mut out);
        out
    }

    fn reasons(&self, out: &mut String) {
        let mut rows = String::new();
        for check in &self.checks {
            for column in &self.columns {
                let found = column.findings.iter().find(|finding| finding.check == check.name);
                let Some(finding) = found else { continue };
                if let Some(why) = &finding.why {
                    let (store, word) = (column.candidate.title(), finding.verdict.word());
                    let _ = writeln!(rows, "| {} | {store} | {word} | {} |", check.name, cell(why));
                }
            }
        }
        if !rows.is_empty() {
            let _ = write!(out, "\n| check | store | verdict | why |\n|---|---|---|---|\n{rows}");
        }
        let mut stories = String::new();
        for check in &self.checks {
            let failed = self.columns.iter().flat_map(|column| &column.findings);
            if failed.clone().any(|f| f.check == check.name && f.verdict == Verdict::Fail) {
                let _ = writeln!(stories, "- {}: {}", check.name, check.story);
            }
        }
        if !stories.is_empty() {
            let _ = write!(out, "\nWhat the checks that somebody fails are about:\n\n{stories}");
        }
    }
}
