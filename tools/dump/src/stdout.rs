//! Standard output as the caller left it.
//!
//! Before `main` Rust's runtime opens `/dev/null` in the place of a standard descriptor that is closed, so that no
//! file of ours gets its number. All that was to be printed would go there, and the run would end as if
//! somebody had read it. So we look before the runtime does.

use rustix::io::Errno;
use std::sync::atomic::{AtomicBool, Ordering};

static WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// One system call, nothing of the standard library: that is not set up yet.
#[ctor::ctor]
fn look() {
    let flags = rustix::io::fcntl_getfd(rustix::stdio::stdout());
    WAS_CLOSED.store(flags == Err(Errno::BADF), Ordering::Relaxed);
}

/// An error if nobody gave us a standard output (`>&-`).
pub fn check() -> std::io::Result<()> {
    match WAS_CLOSED.load(Ordering::Relaxed) {
        true => Err(Errno::BADF.into()),
        false => Ok(()),
    }
}
