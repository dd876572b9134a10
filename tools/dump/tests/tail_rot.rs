//! `tail` and damage: what it prints may be sound, what it exits with is about the whole log. And how any
//! verb ends when its output cannot be written.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod fixture;

use fixture::*;
use std::process::Stdio;

#[test]
fn rot_before_the_printed_rows_counts() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path();
    build(data, 1);
    let args = ["tail", data.to_str().unwrap(), "-n", "1", "-o", "jsonl"];
    let sound = dump(&args);
    assert_eq!((sound.code, sound.err.as_str()), (0, ""));
    let path = segments(data).remove(0);
    let mut bytes = std::fs::read(&path).unwrap();
    // In the value of key16, which lies far before the last record.
    let at = bytes.windows(5).position(|window| window == b"key16").unwrap() + 100;
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let rotten = dump(&args);
    assert_eq!((rotten.code, rotten.out), (4, sound.out), "{}", rotten.err);
    assert!(rotten.err.contains("damaged"), "{}", rotten.err);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_output_is_named_as_what_it_is() {
    let temp = tempfile::tempdir().unwrap();
    build(temp.path(), 1);
    for verb in ["verify", "summary", "tail", "entries"] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = command(&[verb, temp.path().to_str().unwrap()]);
        let output = command.stdout(full).stderr(Stdio::piped()).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{verb}: {message}");
        assert!(message.contains("cannot write to standard output: "), "{verb}: {message}");
    }
}
