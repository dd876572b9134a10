//! `tail -f`: goes on with what is written, into new segments and over restarts of the node, until it is
//! interrupted or nobody reads what it prints.
//!
//! **Not busy.** It sleeps in `poll` on standard output, which ends at once when the reader goes or a signal
//! comes. It reads the log only if the newest segment file has changed, and rests four times as long as a
//! reading took.
//!
//! **Not hasty.** A look at a living log may meet files of two moments. A record that is missing, damaged or
//! gone again is believed only when the next look finds the same; then it is said, and passed over. So it is with
//! a log that does not read at all: that is said once, and tried again. One that is gone ends it.

use super::Context;
use super::tail::{Row, cells, row};
use crate::cli::{Format, Tail};
use crate::failure::{Failure, Verdict};
use crate::load::LogDir;
use crate::output::{line, tell};
use catamaran::env::Disk;
use catamaran::env::os::OsDisk;
use catamaran::log::inspect::{Inspector, SegmentInfo};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// How often to look.
const POLL: Duration = Duration::from_millis(200);
/// The longest rest after a reading that took long.
const REST_MAX: Duration = Duration::from_secs(5);
/// How many times as long as a reading the rest is.
const REST_FACTOR: u32 = 4;

/// What a look found to be odd.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Doubt {
    /// The next record that is there is this one.
    Gap(u64),
    /// It is damaged.
    Damage(u64),
    /// The log ends before this one, and did not before.
    Shrunk(u64),
    /// The log does not read, from this record on.
    Trouble(u64),
}

/// How a rest ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rest {
    Over,
    /// By a signal, or because nobody reads any more.
    Ended,
}

/// The newest segment and when it was last written.
type Stamp = (PathBuf, SystemTime);

struct Follower<'a> {
    dir: &'a LogDir,
    args: &'a Tail,
    /// The record to come.
    next: u64,
    doubt: Option<Doubt>,
    /// Whether the last look was the first to have it: it takes a second one to believe it.
    doubt_is_new: bool,
    damaged: bool,
    /// Whether it was said that the log does not read, since it last did.
    told: bool,
    /// At the last two readings, before they began: what was the same at both has nothing new.
    stamps: [Option<Stamp>; 2],
}

/// Goes on with record `next`. `damaged` is whether what was shown before was.
pub fn follow(
    dir: &LogDir,
    args: &Tail,
    next: u64,
    damaged: bool,
    context: &mut Context<'_>,
) -> Result<Verdict, Failure> {
    let stop = stop_on_signals().map_err(|e| Failure::Open(format!("signals: {e}")))?;
    let (doubt, stamps) = (None, [None, None]);
    let (doubt_is_new, told) = (false, false);
    let mut follower = Follower { dir, args, next, doubt, doubt_is_new, damaged, told, stamps };
    let mut pause = POLL;
    loop {
        if args.to.is_some_and(|to| follower.next > to) || rest(pause, &stop)? == Rest::Ended {
            return Ok(Verdict::bad_if(follower.damaged));
        }
        let began = Instant::now();
        if follower.has_changed() {
            let before = follower.doubt;
            follower.look(context)?;
            follower.doubt_is_new = follower.doubt.is_some() && follower.doubt != before;
            follower.told &= matches!(follower.doubt, Some(Doubt::Trouble(_)));
            context.out.flush()?;
        }
        pause = (began.elapsed() * REST_FACTOR).clamp(POLL, REST_MAX);
    }
}

/// A flag that SIGINT and SIGTERM raise. The second one ends the process as if nobody listened.
fn stop_on_signals() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_default(signal, stop.clone())?;
        signal_hook::flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

/// Waits, unless a signal comes or the reader goes.
fn rest(pause: Duration, stop: &AtomicBool) -> io::Result<Rest> {
    let pause = Timespec { tv_sec: pause.as_secs() as i64, tv_nsec: pause.subsec_nanos().into() };
    if stop.load(Ordering::Relaxed) {
        return Ok(Rest::Ended);
    }
    let stdout = io::stdout();
    let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
    match poll(&mut fds, Some(&pause)) {
        // Nothing was asked for: whatever it is, it is the end.
        Ok(n) if n > 0 => return Ok(Rest::Ended),
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    match stop.load(Ordering::Relaxed) {
        true => Ok(Rest::Ended),
        false => Ok(Rest::Over),
    }
}

impl Follower<'_> {
    /// Whether something may have been written since the last reading. What was written after a reading
    /// began bears a later time than that reading's stamp, unless both fell into one tick of the file
    /// system's clock: hence two readings with the same stamp.
    fn has_changed(&mut self) -> bool {
        let now = self.stamp();
        let same = now.is_some() && self.stamps.iter().all(|stamp| *stamp == now);
        self.stamps.rotate_left(1);
        self.stamps[1] = now;
        !same || self.doubt_is_new
    }

    fn stamp(&self) -> Option<Stamp> {
        let names = OsDisk.list(&self.dir.path).ok()?;
        let newest =
            names.into_iter().rfind(|name| name.extension().is_some_and(|e| e == "seg"))?;
        let written = std::fs::metadata(self.dir.path.join(&newest)).ok()?.modified().ok()?;
        Some((newest, written))
    }

    /// Prints what is new, up to what cannot be believed yet.
    fn look(&mut self, context: &mut Context<'_>) -> Result<(), Failure> {
        let before = self.doubt.take();
        let looked =
            self.dir.inspect().and_then(|inspector| Ok((inspector.segments()?, inspector)));
        let (segments, inspector) = match looked {
            Ok(looked) => looked,
            Err(error) => return self.trouble(before, &error),
        };
        let Some(newest) = segments.last() else {
            return self.trouble(before, &"no segment is there");
        };
        let mut end = newest.header.base_seq;
        for record in inspector.records_from(self.next) {
            let record = match record {
                Ok(record) => record,
                Err(error) => return self.trouble(before, &error),
            };
            end = end.max(record.seq + 1);
            if record.seq < self.next {
                continue;
            }
            let doubt = match (record.seq > self.next, record.damaged.is_empty()) {
                (true, _) => Some(Doubt::Gap(record.seq)),
                // At the end it is being written, or a torn tail: then nothing states it to be durable.
                (false, false) => Some(Doubt::Damage(record.seq)),
                (false, true) => None,
            };
            if let Some(doubt) = doubt {
                let acknowledged = is_acknowledged(&segments, &inspector, record.seq);
                if before != Some(doubt) || (matches!(doubt, Doubt::Damage(_)) && !acknowledged) {
                    self.doubt = Some(doubt);
                    return Ok(());
                }
                if record.seq > self.next {
                    tell(format_args!(
                        "records {} to {} were gone before they were seen",
                        self.next,
                        record.seq - 1
                    ));
                }
                self.damaged |= matches!(doubt, Doubt::Damage(_));
            }
            if self.args.to.is_some_and(|to| record.seq > to) {
                self.next = record.seq;
                return Ok(());
            }
            if let Some(row) = row(&record, self.args, context.keys) {
                show(&row, context)?;
            }
            self.next = record.seq + 1;
        }
        if end > 0 && end < self.next {
            let doubt = Doubt::Shrunk(end);
            if before == Some(doubt) {
                let last = self.next - 1;
                tell(format_args!("records {end} to {last} are gone again: they were not durable"));
                self.next = end;
            } else {
                self.doubt = Some(doubt);
            }
        }
        Ok(())
    }

    /// The log does not read. Once that is nothing: a living log takes files away under our eyes.
    fn trouble(&mut self, before: Option<Doubt>, why: &dyn Display) -> Result<(), Failure> {
        let doubt = Doubt::Trouble(self.next);
        self.doubt = Some(doubt);
        if before != Some(doubt) {
            return Ok(());
        }
        if self.dir.is_gone() {
            let dir = self.dir.path.display();
            return Err(Failure::Open(format!("{dir}: the log is gone")));
        }
        if !self.told {
            tell(format_args!("the log does not read, trying again: {why}"));
            self.told = true;
        }
        Ok(())
    }
}

/// Whether something that reads states the record to be durable.
fn is_acknowledged(segments: &[SegmentInfo], inspector: &Inspector, seq: u64) -> bool {
    segments.iter().any(|segment| segment.header.durable >= seq)
        || inspector.records_from(seq).flatten().any(|record| record.durable >= seq)
}

fn show(row: &Row, context: &mut Context<'_>) -> Result<(), Failure> {
    match context.format {
        Format::Table => writeln!(context.out, "{}", cells(row).join("  "))?,
        Format::Json | Format::Jsonl => line(row, context.out)?,
    }
    Ok(())
}
