//! Real server processes for tests: started, killed, always cleaned up.
//!
//! `ctl` asks them from outside, `net` gives them a network of their own, `load` writes to them and knows what must be
//! there, `bars` draws how long something took.

#![allow(dead_code, reason = "no test uses all of it")]

pub mod bars;
pub mod ctl;
pub mod load;
pub mod net;

use catamaran::client::{Blocking, NodeStatus, RemoteClient};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The binary under test.
pub const CATAMARAN: &str = env!("CARGO_BIN_EXE_catamaran");

/// Runs the binary to its end.
pub fn catamaran(args: &[&str]) -> Output {
    Command::new(CATAMARAN).args(args).env_remove("CATAMARAN_CONNECT").output().unwrap()
}

/// What it printed, as text.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What it complained about, as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Where servers keep applied data: `CATAMARAN_STATE` or on disk.
fn state() -> String {
    std::env::var("CATAMARAN_STATE").unwrap_or_else(|_| "disk".to_owned())
}

/// A number from the environment.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Says why a test shows nothing here, past the harness, which would keep it to itself.
pub fn skip(test: &str, why: &str) {
    let line = format!("\n*** SKIPPED {test}: {why}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Numbers for the choices of a test (xorshift, Marsaglia 2003).
pub struct Draw(u64);

impl Draw {
    /// Seeded by `CATAMARAN_SEED`, or anew each time; says which.
    pub fn start() -> Draw {
        let seed = number("CATAMARAN_SEED").unwrap_or(u64::from(std::process::id()) ^ now_ns());
        println!("CATAMARAN_SEED={seed}");
        Draw::new(seed)
    }

    /// Seeded.
    pub fn new(seed: u64) -> Draw {
        Draw((seed ^ 0x5851_f42d_4c95_7f2d).wrapping_mul(0x9e37_79b9_7f4a_7c15).max(1))
    }

    /// One of `0..n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }

    /// A time between two.
    pub fn between(&mut self, least_ms: u64, most_ms: u64) -> Duration {
        Duration::from_millis(least_ms + self.below(most_ms - least_ms + 1))
    }
}

fn now_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(1, |now| now.as_nanos() as u64)
}

/// A client of these servers.
pub fn client(addresses: &[String], timeout: Duration) -> Blocking {
    RemoteClient::new(addresses, None, timeout).unwrap().client().blocking()
}

/// Where a server's replicas stand, if it says so soon.
pub fn status(address: &str) -> Option<NodeStatus> {
    client(&[address.to_owned()], Duration::from_secs(2)).status().ok()
}

/// Waits until something is there; after `patience` it is too late.
pub fn wait_for<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What servers are started with.
#[derive(Default)]
pub struct Plan {
    /// Regions of the new cluster.
    pub regions: u64,
    /// Settings, `key=value`.
    pub settings: Vec<String>,
    /// Where each listens; empty: at free ports of this machine.
    pub addresses: BTreeMap<u64, String>,
    /// What each one's command line begins with: whatever runs it in another place.
    pub within: BTreeMap<u64, Vec<String>>,
}

/// A cluster of server processes. They are killed when it goes.
pub struct Servers {
    dir: tempfile::TempDir,
    plan: Plan,
    /// The founders; whoever came later joined those that were there.
    founders: u64,
    joined: BTreeMap<u64, String>,
    running: BTreeMap<u64, Child>,
}

/// Addresses that nobody listens at, for a moment at least.
fn free(count: u64) -> Vec<String> {
    let sockets: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    sockets.iter().map(|socket| socket.local_addr().unwrap().to_string()).collect()
}

impl Servers {
    /// Starts this many.
    pub fn start(count: u64, regions: u64) -> Servers {
        Servers::founded(count, Plan { regions, ..Plan::default() })
    }

    /// Starts this many as planned.
    pub fn founded(count: u64, mut plan: Plan) -> Servers {
        if plan.addresses.is_empty() {
            plan.addresses = (1..).zip(free(count)).collect();
        }
        let dir = tempfile::tempdir().unwrap();
        let (joined, running) = (BTreeMap::new(), BTreeMap::new());
        let mut servers = Servers { dir, plan, founders: count, joined, running };
        for id in 1..=count {
            servers.spawn(id);
        }
        servers
    }

    /// Starts one more, which joins those that are running.
    pub fn join(&mut self, id: u64) {
        let others = self.running.keys().map(|id| format!("{id}={}", self.address(*id)));
        let others: Vec<String> = others.collect();
        self.plan.addresses.insert(id, free(1).remove(0));
        self.joined.insert(id, others.join(","));
        self.spawn(id);
    }

    /// The addresses of all that were ever started.
    pub fn addresses(&self) -> Vec<String> {
        self.plan.addresses.values().cloned().collect()
    }

    /// The addresses of those that run.
    pub fn running(&self) -> Vec<String> {
        self.running.keys().map(|id| self.plan.addresses[id].clone()).collect()
    }

    /// One address.
    pub fn address(&self, id: u64) -> &str {
        &self.plan.addresses[&id]
    }

    pub fn stderr_file(&self, id: u64) -> PathBuf {
        self.dir.path().join(format!("server{id}.err"))
    }

    /// Starts a server and waits until it says that it is ready.
    pub fn spawn(&mut self, id: u64) {
        let address = |id: u64| format!("{id}={}", self.address(id));
        let cluster = (1..=self.founders).map(address).collect::<Vec<_>>().join(",");
        let others = match self.joined.get(&id) {
            Some(others) => ["--join", others],
            None => ["--cluster", &cluster],
        };
        let errors = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.stderr_file(id))
            .unwrap();
        let within = self.plan.within.get(&id).into_iter().flatten().map(String::as_str);
        let mut line = within.chain([CATAMARAN]);
        let settings = self.plan.settings.iter().flat_map(|setting| ["--set", setting]);
        let mut child = Command::new(line.next().unwrap())
            .args(line)
            .args(["serve", "--store-id", &id.to_string()])
            .args(["--data-dir", self.data_dir(id).to_str().unwrap()])
            .args(["--listen", self.address(id)])
            .args(others)
            .args(["--regions", &self.plan.regions.to_string()])
            .args(["--set", &format!("state={}", state())])
            .args(["--set", "segment_bytes=8388608", "--set", "memtable_bytes=1048576"])
            .args(settings)
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
    pub fn kill(&mut self, id: u64) {
        let mut child = self.running.remove(&id).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn signal(child: &Child, signal: &str) {
        let pid = child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Stops a server in its tracks: it keeps its connections and does nothing.
    pub fn pause(&self, id: u64) {
        Servers::signal(&self.running[&id], "-STOP");
    }

    /// Lets it go on.
    pub fn resume(&self, id: u64) {
        Servers::signal(&self.running[&id], "-CONT");
    }

    /// Asks a server to stop by SIGTERM; its exit code.
    pub fn terminate(&mut self, id: u64, patience: Duration) -> Option<i32> {
        let mut child = self.running.remove(&id).unwrap();
        Servers::signal(&child, "-TERM");
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
