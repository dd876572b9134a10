//! A network for one test: each server in a network namespace of its own, all on one bridge, the test beside it.
//!
//! The test runs itself again in fresh namespaces ([`isolate`]): one for the network, so that nothing of the
//! machine's is touched, and one for processes, so that everything goes when the test does, however it ends.
//! Root can do so, and where the system lets them, others in a user namespace of their own.
//!
//! A way between two servers is cut in one direction by a blackhole route at the sender: what is on its way
//! still arrives, nothing else does, and connections stay open on both sides. So acknowledgements of what
//! comes the other way are lost, too, as they are when a real network fails in one direction.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MARK: &str = "CATAMARAN_ISOLATED";
const PORT: u16 = 7001;

/// What came of [`isolate`].
pub enum Isolated {
    /// This is the isolated copy: go on.
    Inside,
    /// The isolated copy has run, and passed.
    Passed,
    /// The machine does not allow it.
    Impossible(String),
}

/// Everything that is needed of the machine, tried out.
const TRIAL: &str = "ip link set lo up && ip link add hub type bridge && \
    ip link add port1 type veth peer name far1 && ip addr add 10.77.0.254/24 dev hub && \
    ip link set hub up && ip route add blackhole 10.77.0.1/32 && \
    unshare --net true && nsenter --net=/proc/self/ns/net true && kill -0 $$";

/// Runs the test of this name again, in namespaces of its own, unless this is that run.
pub fn isolate(test: &str) -> Isolated {
    if std::env::var_os(MARK).is_some() {
        // Whoever waits for us holds the other end: if it goes, so do we, and with us all processes.
        std::thread::spawn(|| {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            std::process::exit(3);
        });
        return Isolated::Inside;
    }
    let usual = ["--net", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let unprivileged = [&["--user", "--map-root-user"], &usual[..]].concat();
    let mut why = String::new();
    for how in [&usual[..], &unprivileged[..]] {
        let tried = Command::new("unshare").args(how).args(["sh", "-c", TRIAL]).output();
        match tried {
            Ok(output) if output.status.success() => {
                run_inside(how, test);
                return Isolated::Passed;
            }
            Ok(output) => why = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "),
            Err(error) => why = format!("unshare: {error}"),
        }
    }
    Isolated::Impossible(format!("no network namespaces with bridge and veth here ({why})"))
}

fn run_inside(how: &[&str], test: &str) {
    let mut child = Command::new("unshare")
        .args(how)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(MARK, "yes")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let ours = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    drop(ours);
    println!("{}", String::from_utf8_lossy(&output.stdout));
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "in its own namespaces: {}", output.status);
}

fn ip(args: &str) {
    let output = Command::new("ip").args(args.split(' ')).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {args}: {said}");
}

fn host(id: u64) -> String {
    format!("10.77.0.{id}")
}

/// The network of an isolated test.
pub struct Net {
    /// A process in each namespace, which keeps it while its server is dead.
    holders: BTreeMap<u64, Child>,
}

impl Net {
    /// Lays it for servers `1..=count`. Only in a run that [`isolate`] calls inside.
    pub fn lay(count: u64) -> Net {
        ip("link set lo up");
        ip("link add hub type bridge");
        ip("addr add 10.77.0.254/24 dev hub");
        ip("link set hub up");
        let mut net = Net { holders: BTreeMap::new() };
        for id in 1..=count {
            let holder = Command::new("unshare")
                .args(["--net", "cat"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            let pid = holder.id();
            net.holders.insert(id, holder);
            let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
            let path = format!("/proc/{pid}/ns/net");
            let until = Instant::now() + Duration::from_secs(30);
            while std::fs::read_link(&path).ok().is_none_or(|theirs| theirs == ours) {
                assert!(Instant::now() < until, "namespace {id} never came");
                std::thread::sleep(Duration::from_millis(2));
            }
            ip(&format!("link add port{id} type veth peer name eth0 netns {pid}"));
            ip(&format!("link set port{id} master hub up"));
            net.ip(id, &format!("addr add {}/24 dev eth0", host(id)));
            net.ip(id, "link set eth0 up");
            net.ip(id, "link set lo up");
        }
        net
    }

    /// Where each server is to listen.
    pub fn addresses(&self) -> BTreeMap<u64, String> {
        self.holders.keys().map(|id| (*id, format!("{}:{PORT}", host(*id)))).collect()
    }

    /// What the command lines of the servers begin with.
    pub fn within(&self) -> BTreeMap<u64, Vec<String>> {
        self.holders.keys().map(|id| (*id, self.enter(*id))).collect()
    }

    fn enter(&self, id: u64) -> Vec<String> {
        let namespace = format!("--net=/proc/{}/ns/net", self.holders[&id].id());
        vec!["nsenter".into(), namespace, "--".into()]
    }

    fn ip(&self, id: u64, args: &str) {
        let enter = self.enter(id);
        let line =
            Command::new(&enter[0]).args(&enter[1..]).arg("ip").args(args.split(' ')).output();
        let output = line.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "at {id}: ip {args}: {said}");
    }

    /// Nothing gets from one server to another any more.
    pub fn cut(&self, from: u64, to: u64) {
        self.ip(from, &format!("route replace blackhole {}/32", host(to)));
    }

    /// It does again.
    pub fn mend(&self, from: u64, to: u64) {
        self.ip(from, &format!("route del blackhole {}/32", host(to)));
    }

    /// Takes a server off the network: nobody reaches it, clients neither.
    pub fn unplug(&self, id: u64) {
        ip(&format!("link set port{id} down"));
    }

    /// Puts it back.
    pub fn plug(&self, id: u64) {
        ip(&format!("link set port{id} up"));
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for holder in self.holders.values_mut() {
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}
