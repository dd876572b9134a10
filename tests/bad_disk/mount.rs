//! A small file system, which is really full when it is full.

use std::path::PathBuf;

/// A small file system of its own.
pub struct Mount(pub PathBuf);

impl Mount {
    /// `None` where mounting is not possible: it takes Linux and root.
    pub fn new(at: PathBuf, size: &str) -> Option<Mount> {
        std::fs::create_dir(&at).unwrap();
        let size = format!("size={size}");
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "catamaran-test"]).arg(&at);
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        mounted.then_some(Mount(at))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
