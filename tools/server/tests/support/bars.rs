//! How long each of many things took, drawn for people.

use std::fmt::Write;
use std::time::Duration;

const WIDTH: usize = 50;

fn at(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

/// A line of figures, and a bar for each `step`.
pub fn draw(what: &str, mut times: Vec<Duration>, step: Duration) -> String {
    times.sort_unstable();
    let mut text = format!(
        "{what}: {} in all; least {:.0?}, p50 {:.0?}, p90 {:.0?}, p99 {:.0?}, most {:.0?}\n",
        times.len(),
        times[0],
        at(&times, 50),
        at(&times, 90),
        at(&times, 99),
        times[times.len() - 1]
    );
    let bucket = |time: &Duration| (time.as_nanos() / step.as_nanos()) as usize;
    let mut counts = vec![0; bucket(&times[times.len() - 1]) + 1];
    times.iter().for_each(|time| counts[bucket(time)] += 1);
    let most = counts.iter().copied().max().unwrap_or(1);
    let first = counts.iter().position(|count| *count > 0).unwrap_or(0);
    for (at, count) in counts.iter().enumerate().skip(first) {
        let bar = "#".repeat((count * WIDTH).div_ceil(most));
        let until = step * (at as u32 + 1);
        let _ = writeln!(text, "  < {:>6} ms {count:>6} {bar}", until.as_millis());
    }
    text
}
