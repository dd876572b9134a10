//! Real server processes for tests: started, killed, always cleaned up.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The binary under test.
pub const CATAMARAN: &str = env!("CARGO_BIN_EXE_catamaran");

/// Runs the binary to its end.
#[allow(dead_code, reason = "not every test runs it to its end")]
pub fn catamaran(args: &[&str]) -> Output {
    Command::new(CATAMARAN).args(args).env_remove("CATAMARAN_CONNECT").output().unwrap()
}

/// What it printed, as text.
#[allow(dead_code, reason = "not every test runs it to its end")]
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What it complained about, as text.
#[allow(dead_code, reason = "not every test runs it to its end")]
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Where servers keep applied data: `CATAMARAN_STATE` or on disk.
fn state() -> String {
    std::env::var("CATAMARAN_STATE").unwrap_or_else(|_| "disk".to_owned())
}

/// A cluster of server processes. They are killed when it goes.
pub struct Servers {
    dir: tempfile::TempDir,
    addresses: BTreeMap<u64, String>,
    regions: u64,
    running: BTreeMap<u64, Child>,
}

impl Servers {
    /// Starts this many.
    pub fn start(count: u64, regions: u64) -> Servers {
        let sockets: Vec<TcpListener> =
            (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses =
            (1..).zip(&sockets).map(|(id, s)| (id, s.local_addr().unwrap().to_string())).collect();
        drop(sockets);
        let dir = tempfile::tempdir().unwrap();
        let mut servers = Servers { dir, addresses, regions, running: BTreeMap::new() };
        for id in 1..=count {
            servers.spawn(id);
        }
        servers
    }

    /// All addresses.
    pub fn addresses(&self) -> Vec<String> {
        self.addresses.values().cloned().collect()
    }

    /// One address.
    #[allow(dead_code, reason = "not every test asks one server")]
    pub fn address(&self, id: u64) -> &str {
        &self.addresses[&id]
    }

    fn stderr_file(&self, id: u64) -> PathBuf {
        self.dir.path().join(format!("server{id}.err"))
    }

    /// Starts a server and waits until it says that it is ready.
    pub fn spawn(&mut self, id: u64) {
        let members: Vec<String> =
            self.addresses.iter().map(|(id, address)| format!("{id}={address}")).collect();
        let errors = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.stderr_file(id))
            .unwrap();
        let mut child = Command::new(CATAMARAN)
            .args(["serve", "--store-id", &id.to_string()])
            .args(["--data-dir", self.data_dir(id).to_str().unwrap()])
            .args(["--listen", &self.addresses[&id], "--cluster", &members.join(",")])
            .args(["--regions", &self.regions.to_string()])
            .args(["--set", &format!("state={}", state())])
            .args(["--set", "segment_bytes=8388608", "--set", "memtable_bytes=1048576"])
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next();
        self.running.insert(id, child);
        match first {
            Some(Ok(line)) if line.starts_with("ready: ") => {}
            other => panic!("server {id} said {other:?}\n{}", self.log_tail(id)),
        }
        // Somebody must go on reading, or the server's last line would find a closed pipe.
        std::thread::spawn(move || lines.for_each(drop));
    }

    /// Where a server keeps its data.
    pub fn data_dir(&self, id: u64) -> PathBuf {
        self.dir.path().join(format!("data{id}"))
    }

    /// `kill -9`, and waits until the process is gone.
    #[allow(dead_code, reason = "not every test kills")]
    pub fn kill(&mut self, id: u64) {
        let mut child = self.running.remove(&id).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Asks a server to stop by SIGTERM; its exit code.
    #[allow(dead_code, reason = "not every test stops servers kindly")]
    pub fn terminate(&mut self, id: u64, patience: Duration) -> Option<i32> {
        let mut child = self.running.remove(&id).unwrap();
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let until = Instant::now() + patience;
        loop {
            match child.try_wait().unwrap() {
                Some(status) => return status.code(),
                None if Instant::now() > until => {
                    child.kill().unwrap();
                    child.wait().unwrap();
                    panic!("server {id} did not stop\n{}", self.log_tail(id));
                }
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// The last lines that a server logged.
    pub fn log_tail(&self, id: u64) -> String {
        tail(&self.stderr_file(id))
    }
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

impl Drop for Servers {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
