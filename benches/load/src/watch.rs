//! Progress on standard error: a bar on a terminal, else a line now and then.

use crate::drive::Progress;
use crate::quantity::grouped;
use crate::record::Window;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Says what is being done, on standard error.
pub fn say(text: &str) {
    eprintln!("{text}");
}

/// Reports progress until the window ends.
pub fn watch(window: Window, progress: &Progress) {
    let began = Instant::now();
    let whole = window.end.saturating_duration_since(began);
    let terminal = std::io::stderr().is_terminal();
    let bar = match terminal {
        true => ProgressBar::new(whole.as_millis() as u64),
        false => ProgressBar::hidden(),
    };
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {elapsed:>4} {msg}") {
        bar.set_style(style);
    }
    // Ten lines or so for a log file, whatever the duration.
    let line_every = (whole / 10).max(Duration::from_secs(1));
    let mut last_ops = progress.ops.load(Ordering::Relaxed);
    let (mut last_at, mut last_line) = (began, began);
    while Instant::now() < window.end {
        let left = window.end.saturating_duration_since(Instant::now());
        std::thread::sleep(left.min(Duration::from_millis(if terminal { 250 } else { 100 })));
        let now = Instant::now();
        bar.set_position((now - began).as_millis() as u64);
        let since = now - last_at;
        let line = !terminal && now - last_line >= line_every;
        if !(line || terminal && since >= Duration::from_millis(900)) {
            continue;
        }
        let ops = progress.ops.load(Ordering::Relaxed);
        let errors = progress.errors.load(Ordering::Relaxed);
        let rate = grouped(((ops - last_ops) as f64 / since.as_secs_f64()) as u64);
        let phase = if now < window.start { "warm-up, " } else { "" };
        let text = format!("{phase}{rate} ops/s, {errors} errors");
        match terminal {
            true => bar.set_message(text),
            false => say(&format!("{:>5.1} s  {text}", (now - began).as_secs_f64())),
        }
        (last_ops, last_at, last_line) = (ops, now, now);
    }
    bar.finish_and_clear();
}
