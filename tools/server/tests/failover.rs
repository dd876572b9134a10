//! Three server processes, one of which leads every region: it is killed (`kill -9`), and each region must take a
//! write again. Once with all regions awake and written to, once with all of them asleep. Prints how long each region
//! was without. How long is the machine's affair as well, so the tests judge it only where it is asked for:
//!
//! `CATAMARAN_REGIONS` says how many regions (default 50), and that none may be without for longer than two election
//! timeouts, or, woken from sleep, two seconds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by them")]

mod support;

use catamaran::client::{Client, RemoteClient};
use catamaran::types::StoreId;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::{Plan, Servers, bars, client, load, number, status, wait_for};
use tokio::sync::Barrier;

const PATIENCE: Duration = Duration::from_secs(300);
/// As the settings are by default.
const ELECTION_TIMEOUT: Duration = Duration::from_millis(600);
/// All regions together are written to about so often in a second, while they wait for the kill.
const WRITES_A_SECOND: u64 = 500;

fn regions() -> u64 {
    number("CATAMARAN_REGIONS").unwrap_or(50)
}

fn plan(hibernate_after_ms: u64) -> Plan {
    let settings = vec![
        format!("hibernate_after_ms={hibernate_after_ms}"),
        "memtable_bytes=67108864".to_owned(),
    ];
    Plan { regions: regions(), settings, ..Plan::default() }
}

/// Hands all leaderships to server 1.
fn gather(servers: &Servers) {
    let asked = client(&servers.addresses(), Duration::from_secs(10));
    wait_for("server 1 leads everything", PATIENCE, || {
        let mut led = 0;
        for region in status(servers.address(1))?.regions {
            match region.leads {
                true => led += 1,
                // Refused, while nobody leads it: asked again with the next look.
                false => drop(asked.transfer_leader(region.region.id, Some(StoreId(1)))),
            }
        }
        (led == regions()).then_some(())
    });
}

async fn put(asked: &Client, region: u64, value: &str) -> bool {
    asked.put(load::key(regions(), region, "probe"), value).await.is_ok()
}

fn remote(servers: &Servers) -> RemoteClient {
    RemoteClient::new(&servers.addresses(), None, Duration::from_secs(10)).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// From `killed` until a write that was asked for after it is acknowledged.
async fn outage(asked: &Client, region: u64, killed: Instant) -> Duration {
    while !put(asked, region, "after").await {
        assert!(killed.elapsed() < PATIENCE, "region {region} takes no writes");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    killed.elapsed()
}

fn report(what: &str, outages: Vec<Duration>, bound: Duration, named: &str) {
    let within = outages.iter().filter(|outage| **outage <= bound).count();
    let all = outages.len();
    println!("{}", bars::draw(what, outages, Duration::from_millis(100)));
    println!("within {named} ({bound:?}): {within} of {all}");
    if number("CATAMARAN_REGIONS").is_some() {
        assert_eq!(within, all, "within {named}");
    }
}

#[test]
fn regions_that_were_awake_write_again_after_their_leaders_node_was_killed() {
    let mut servers = Servers::founded(3, plan(0));
    gather(&servers);
    let remote = remote(&servers);
    let runtime = runtime();
    let stop = Arc::new(AtomicBool::new(false));
    let ready = Arc::new(Barrier::new(regions() as usize + 1));
    let pause = Duration::from_millis(regions() * 1_000 / WRITES_A_SECOND);
    let (tell, told) = tokio::sync::watch::channel(None);
    let writers: Vec<_> = (0..regions())
        .map(|region| {
            let (asked, stop, ready) = (remote.client(), Arc::clone(&stop), Arc::clone(&ready));
            let mut told = told.clone();
            runtime.spawn(async move {
                while !put(&asked, region, "before").await {}
                ready.wait().await;
                while !stop.load(Ordering::Relaxed) {
                    put(&asked, region, "before").await;
                    let _ = tokio::time::timeout(pause, told.changed()).await;
                }
                let killed = told.wait_for(Option::is_some).await.unwrap().unwrap();
                outage(&asked, region, killed).await
            })
        })
        .collect();
    runtime.block_on(ready.wait());
    // Steady for a while; a leadership that moved meanwhile is brought back.
    std::thread::sleep(Duration::from_secs(3));
    gather(&servers);
    // From the signal on, not from when the process is gone: that takes the system a moment.
    let killed = Instant::now();
    servers.kill(1);
    println!("the process was gone after {:.1?}", killed.elapsed());
    stop.store(true, Ordering::Relaxed);
    tell.send(Some(killed)).unwrap();
    let outages = runtime.block_on(async {
        let mut outages = Vec::new();
        for writer in writers {
            outages.push(writer.await.unwrap());
        }
        outages
    });
    report("without writes", outages, 2 * ELECTION_TIMEOUT, "two election timeouts");
}

#[test]
fn regions_that_slept_take_their_first_write_after_their_leaders_node_was_killed() {
    let mut servers = Servers::founded(3, plan(1_000));
    gather(&servers);
    let mut last = 0;
    wait_for("all regions sleep, led by server 1", PATIENCE, || {
        let mut asleep = 0;
        for id in 1..=3 {
            let status = status(servers.address(id))?;
            asleep += status.regions.iter().filter(|r| r.asleep && r.leads == (id == 1)).count();
        }
        if asleep != last {
            println!("{asleep} replicas sleep");
            last = asleep;
        }
        (asleep as u64 == 3 * regions()).then_some(())
    });
    let remote = remote(&servers);
    let runtime = runtime();
    let killed = Instant::now();
    servers.kill(1);
    println!("the process was gone after {:.1?}", killed.elapsed());
    let outages = runtime.block_on(async {
        let writers = (0..regions()).map(|region| {
            let asked = remote.client();
            tokio::spawn(async move { outage(&asked, region, killed).await })
        });
        let writers: Vec<_> = writers.collect();
        let mut outages = Vec::new();
        for writer in writers {
            outages.push(writer.await.unwrap());
        }
        outages
    });
    report("first writes", outages, Duration::from_secs(2), "two seconds");
}
