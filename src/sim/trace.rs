//! The record of a run: one line per thing that happened. Every line goes into a running hash; the last
//! lines are kept for the report of a failure; all of them can be written out. Two runs of one seed
//! must give the same bytes, so nothing may be traced that comes from outside the run (an address, a
//! real time, a path of this machine).

use super::rng::mix;
use crate::types::Time;
use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::io;

/// The trace of one run.
///
/// - The hash covers every line, kept or not.
/// - At most `keep` lines are held.
pub struct Trace {
    hash: u64,
    lines: u64,
    keep: usize,
    last: VecDeque<String>,
    dump: Option<Box<dyn io::Write + Send>>,
    failed: Option<io::Error>,
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trace({} lines, {:016x})", self.lines, self.hash)
    }
}

impl Trace {
    /// A trace that holds the last `keep` lines.
    pub fn new(keep: usize) -> Trace {
        Trace { hash: 0, lines: 0, keep, last: VecDeque::new(), dump: None, failed: None }
    }

    /// Also writes every line to `out`, from now on.
    pub fn dump_to(&mut self, out: impl io::Write + Send + 'static) {
        self.dump = Some(Box::new(out));
    }

    /// Adds a line: the time in seconds, then the text. Line breaks in the text are escaped.
    pub fn line(&mut self, now: Time, text: fmt::Arguments<'_>) {
        // The oldest line's memory is used again: a long run allocates for its first lines only.
        let mut line = match self.last.len() >= self.keep {
            true => self.last.pop_front().unwrap_or_default(),
            false => String::new(),
        };
        line.clear();
        // Writing to a String cannot fail.
        let _ = write!(line, "{:4}.{:09} ", now.0 / 1_000_000_000, now.0 % 1_000_000_000);
        let _ = line.write_fmt(text);
        if line.contains('\n') {
            line = line.replace('\n', "\\n");
        }
        self.hash = mix(self.hash ^ u64::from(crc32c::crc32c(line.as_bytes())));
        self.lines += 1;
        if let Some(out) = &mut self.dump
            && let Err(error) = out.write_all(line.as_bytes()).and_then(|()| out.write_all(b"\n"))
        {
            self.failed = Some(error);
            self.dump = None;
        }
        if self.keep > 0 {
            self.last.push_back(line);
        }
    }

    /// The hash over all lines so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many lines there were.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// The lines still held, oldest first.
    pub fn last(&self) -> impl Iterator<Item = &str> {
        self.last.iter().map(String::as_str)
    }

    /// Ends the dump: the first error of its writer, if there was one.
    pub fn finish(&mut self) -> io::Result<()> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        self.dump.take().map_or(Ok(()), |mut out| out.flush())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Shared {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0.lock().extend(buf);
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn hash_ring_and_dump() {
        let out = Shared::default();
        let mut a = Trace::new(2);
        a.dump_to(out.clone());
        let mut b = Trace::new(0);
        for n in 0..5 {
            a.line(Time(n), format_args!("line {n}\nof more"));
            b.line(Time(n), format_args!("line {n}\nof more"));
        }
        a.finish().unwrap();
        assert_eq!((a.hash(), a.lines()), (b.hash(), 5));
        let kept: Vec<&str> = a.last().collect();
        assert_eq!(kept, ["   0.000000003 line 3\\nof more", "   0.000000004 line 4\\nof more"]);
        assert_eq!(b.last().count(), 0);
        let text = String::from_utf8(out.0.lock().clone()).unwrap();
        assert_eq!(text.lines().count(), 5);
        b.line(Time(9), format_args!("x"));
        assert_ne!(a.hash(), b.hash());
    }

    #[test]
    fn a_failing_writer_is_reported_and_does_not_stop_the_run() {
        struct Full;
        impl io::Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut trace = Trace::new(1);
        trace.dump_to(Full);
        trace.line(Time(1), format_args!("a"));
        trace.line(Time(2), format_args!("b"));
        assert_eq!(trace.lines(), 2);
        assert!(trace.finish().is_err());
    }
}
