//! Where and from what a figure comes: the machine, the commit, and what the process has used.

use serde::Serialize;
use std::time::Duration;

/// The machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Machine {
    /// Processor.
    pub cpu: String,
    /// Logical cores this process may use.
    pub cores: usize,
    /// Main memory in bytes; 0 where the system does not say.
    pub memory_bytes: u64,
    /// Operating system and its version.
    pub os: String,
    /// Instruction set.
    pub arch: &'static str,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The value of `name: value` or `name<tab>: value`.
fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn kib(text: &str, name: &str) -> Option<u64> {
    let value = field(text, name)?;
    Some(value.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

impl Machine {
    /// This one.
    pub fn this() -> Machine {
        let release = read("/proc/sys/kernel/osrelease");
        Machine {
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kib(&read("/proc/meminfo"), "MemTotal").unwrap_or(0),
            os: format!("{} {}", std::env::consts::OS, release.trim()).trim().to_owned(),
            arch: std::env::consts::ARCH,
        }
    }
}

/// The commit this binary was built from, `-dirty` if files differed; `unknown` outside of a clone.
pub fn commit() -> &'static str {
    option_env!("CATAMARAN_COMMIT").unwrap_or("unknown")
}

/// What the process has used so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Used {
    /// Processor time of all threads, user and system.
    pub cpu: Duration,
}

impl Used {
    /// As of now.
    pub fn now() -> Used {
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Used {
            cpu: Duration::new(
                u64::try_from(cpu.tv_sec).unwrap_or(0),
                u32::try_from(cpu.tv_nsec).unwrap_or(0),
            ),
        }
    }
}

/// Most memory the process ever held, in bytes; 0 where the system does not say.
pub fn peak_rss_bytes() -> u64 {
    kib(&read("/proc/self/status"), "VmHWM").unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known() {
        let machine = Machine::this();
        assert!(machine.cores > 0 && !machine.os.is_empty());
        let before = Used::now().cpu;
        let mut x = 1u64;
        while Used::now().cpu == before {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        if cfg!(target_os = "linux") {
            assert!(peak_rss_bytes() > 0 && machine.memory_bytes > 0);
        }
    }
}
