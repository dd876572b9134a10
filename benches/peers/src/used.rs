//! What this process has used, as the operating system tells it.

use std::time::Duration;

/// Processor time of all threads, user and system.
pub fn cpu() -> Duration {
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(cpu.tv_sec).unwrap_or(0), u32::try_from(cpu.tv_nsec).unwrap_or(0))
}

/// The number behind `name:` in a file of `/proc/self`; 0 where the system does not say.
fn number(file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let first = line.and_then(|line| line.split_whitespace().next());
    first.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Bytes of memory that are resident now.
pub fn resident_bytes() -> u64 {
    number("/proc/self/status", "VmRSS") * 1024
}

/// Bytes handed to the system by `write` and its kin so far: what an engine writes to files, whether or not it has
/// reached the disk yet.
pub fn written_bytes() -> u64 {
    number("/proc/self/io", "wchar")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_is_seen() {
        let before = cpu();
        let mut x = 1u64;
        while cpu() == before {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        if cfg!(target_os = "linux") {
            assert!(resident_bytes() > 0);
            let before = written_bytes();
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("x"), vec![1; 10_000]).unwrap();
            assert!(written_bytes() >= before + 10_000);
        }
    }
}
