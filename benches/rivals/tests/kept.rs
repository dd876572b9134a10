//! What is kept as documentation is what the kept results say.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use catamaran_rivals::conform::Conformance;
use catamaran_rivals::report::Report;
use std::path::{Path, PathBuf};

fn results(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("results").join(name)
}

#[test]
fn the_comparison_is_made_from_the_results() {
    let names = ["write.json", "space.json", "space-raft-log.json"];
    let files: Vec<PathBuf> = names.into_iter().map(results).filter(|file| file.exists()).collect();
    let made = Report::read(&files).unwrap().document();
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src/log/comparison.md");
    let kept = std::fs::read_to_string(kept).unwrap();
    assert_eq!(kept, made, "make it anew: benches/rivals/compare.sh");
}

#[test]
fn the_conformance_table_is_made_from_the_findings() {
    let text = std::fs::read_to_string(results("conformance.json")).unwrap();
    let found: Conformance = serde_json::from_str(&text).unwrap();
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance.md");
    let kept = std::fs::read_to_string(kept).unwrap();
    assert_eq!(kept, found.document(), "make it anew, as its head says");
}
