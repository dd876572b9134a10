//! A small file system, which is really full when it is full.

use std::io::Write;
use std::path::PathBuf;

/// A small file system of its own.
pub struct Mount(pub PathBuf);

impl Mount {
    /// `None` where mounting is not possible: it takes Linux and root. Says so, loudly: the test shows nothing then.
    pub fn new(at: PathBuf, size: &str) -> Option<Mount> {
        std::fs::create_dir(&at).unwrap();
        let size = format!("size={size}");
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "catamaran-test"]).arg(&at);
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        if !mounted {
            // Past the harness, which would keep it to itself.
            let test = std::thread::current().name().unwrap_or_default().to_owned();
            let line = format!("\n*** SKIPPED {test}: cannot mount a tmpfs here\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
        }
        mounted.then_some(Mount(at))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
