//! The result: JSON for machines, a table for people.

use crate::args::{Plan, Profile, Spread, State};
use crate::machine::{self, Machine};
use crate::quantity::{grouped, human_bytes, human_micros};
use crate::record::{Percentiles, Record};
use crate::verify::Verified;
use catamaran::driver::{Histogram, Stage, StageStats};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::time::Duration;

/// Replicas of a region, if there are as many nodes.
const REPLICAS: u64 = 3;

/// Counters of the engine over the measured window. Of several nodes: their sum.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Cost {
    /// Entries written to logs.
    pub entries: u64,
    /// Syncs of log files.
    pub fsyncs: u64,
    /// Bytes written to logs, padding included.
    pub log_bytes: u64,
    /// Flushes of state stores.
    pub flushes: u64,
    /// Bytes of their tables, at the end.
    pub table_bytes: u64,
    /// Terms of all regions together: grows by at least one with each election.
    pub terms: u64,
    /// Processor time of the process, generator included; never that of other processes.
    pub cpu: Duration,
    /// Where writes waited.
    pub stages: StageStats,
}

impl Cost {
    /// Both together.
    pub fn plus(self, other: Cost) -> Cost {
        Cost {
            entries: self.entries + other.entries,
            fsyncs: self.fsyncs + other.fsyncs,
            log_bytes: self.log_bytes + other.log_bytes,
            flushes: self.flushes + other.flushes,
            table_bytes: self.table_bytes + other.table_bytes,
            terms: self.terms + other.terms,
            cpu: self.cpu + other.cpu,
            stages: self.stages.plus(&other.stages),
        }
    }

    /// What was added since `before`.
    pub fn since(self, before: &Cost) -> Cost {
        Cost {
            entries: self.entries.saturating_sub(before.entries),
            fsyncs: self.fsyncs.saturating_sub(before.fsyncs),
            log_bytes: self.log_bytes.saturating_sub(before.log_bytes),
            flushes: self.flushes.saturating_sub(before.flushes),
            table_bytes: self.table_bytes,
            terms: self.terms.saturating_sub(before.terms),
            cpu: self.cpu.saturating_sub(before.cpu),
            stages: self.stages.since(&before.stages),
        }
    }
}

/// How long writes spent in one stage of their way, all nodes together. See `catamaran::driver::Stage`.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct StageFigures {
    /// Which.
    pub stage: &'static str,
    /// How many: requests, or rounds of store loops for `log_wait` and `log_write`.
    pub count: u64,
    /// Microseconds on average.
    pub mean_us: f64,
    /// Half of them took no longer. All but mean and max are rounded up, by an eighth at most.
    pub p50_us: f64,
    /// 90 %.
    pub p90_us: f64,
    /// 99 %.
    pub p99_us: f64,
    /// 99.9 %.
    pub p999_us: f64,
    /// The longest; rounded up as well.
    pub max_us: f64,
}

impl StageFigures {
    fn new(stage: Stage, times: &Histogram) -> StageFigures {
        let us = |time: Duration| time.as_nanos() as f64 / 1e3;
        StageFigures {
            stage: stage.name(),
            count: times.count(),
            mean_us: us(times.mean()),
            p50_us: us(times.quantile(0.5)),
            p90_us: us(times.quantile(0.9)),
            p99_us: us(times.quantile(0.99)),
            p999_us: us(times.quantile(0.999)),
            max_us: us(times.max()),
        }
    }
}

/// What only the log profile has.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct LogFigures {
    /// Groups.
    pub groups: u64,
    /// Threads that wrote.
    pub threads: usize,
    /// Entries in a write.
    pub entries_per_write: u64,
    /// Groups of a write.
    pub span: u64,
    /// Writes outstanding per thread.
    pub window: usize,
    /// Writes per second.
    pub writes_per_s: f64,
    /// Entries per second.
    pub entries_per_s: f64,
}

/// Everything a run has to say. Field names are a promise: scripts read them.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Name of the profile; `servers` when driving running servers.
    pub profile: &'static str,
    /// Nodes of this process, or servers that answered.
    pub nodes: u64,
    /// Regions.
    pub regions: u64,
    /// Logical clients.
    pub clients: u32,
    /// Operations in a request.
    pub batch: usize,
    /// Bytes of a key.
    pub key_size: usize,
    /// Bytes of a value.
    pub value_size: usize,
    /// How keys were chosen.
    pub distribution: String,
    /// Whether a request's keys lay in one region.
    pub one_region_batches: bool,
    /// Part of the requests that read.
    pub read_ratio: f64,
    /// Where applied data lived; `unknown` of running servers.
    pub state: &'static str,
    /// Operations per second aimed at; null: closed loop.
    pub rate: Option<u64>,
    /// Requests that were due in the window and never sent, since every client waited for an answer.
    pub unsent: u64,
    /// Seconds that were to be measured.
    pub planned_s: f64,
    /// Seconds before them.
    pub warmup_s: f64,
    /// Keys of the key space, at least.
    pub keys: u64,
    /// Threads that generated load.
    pub threads: usize,
    /// Store loops of a node; null: the node's own choice.
    pub loops: Option<u64>,
    /// Other settings of the nodes that were not their defaults.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub settings: Map<String, Value>,
    /// Seed.
    pub seed: u64,
    /// Measured seconds.
    pub duration_s: f64,
    /// Operations acknowledged in them.
    pub ops: u64,
    /// The same per second.
    pub ops_per_s: f64,
    /// Of the operations, reads.
    pub reads: u64,
    /// Reads that returned what they must not.
    pub wrong_reads: u64,
    /// Requests acknowledged.
    pub requests: u64,
    /// Log entries written, all nodes together.
    pub entries: u64,
    /// Syncs of log files, all nodes together.
    pub fsyncs: u64,
    /// The same per second.
    pub fsyncs_per_s: f64,
    /// Bytes written to logs, padding included, all nodes together.
    pub bytes_written: u64,
    /// Flushes of the state stores.
    pub flushes: u64,
    /// Bytes of their tables at the end; what compaction wrote in between is not in it.
    pub table_bytes: u64,
    /// Terms that began, all regions together: none unless leaders changed.
    pub elections: u64,
    /// Processor seconds of the process, generator included; of running servers only the generator's.
    pub cpu_s: f64,
    /// The same per operation, in microseconds.
    pub cpu_us_per_op: f64,
    /// Most memory held, generator and its ledger included.
    pub rss_bytes: u64,
    /// Latency of requests; with a rate, from the intended start.
    pub latency_us: Percentiles,
    /// The curve of the same: percent, microseconds.
    pub latency_points: Vec<(f64, f64)>,
    /// Where writes waited, in the order of their way; null where nobody measured it.
    pub stages: Option<Vec<StageFigures>>,
    /// Operations by second.
    pub ops_by_second: Vec<u64>,
    /// Failed requests by kind.
    pub errors: BTreeMap<&'static str, u64>,
    /// Requests never answered.
    pub abandoned: u64,
    /// What reading back found; null without --verify.
    pub verified: Option<Verified>,
    /// What only the log profile has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<LogFigures>,
    /// The machine.
    pub machine: Machine,
    /// The commit.
    pub commit: &'static str,
}

fn figures(stages: &StageStats) -> Option<Vec<StageFigures>> {
    let measured = stages.iter().any(|(_, times)| times.count() > 0);
    measured.then(|| stages.iter().map(|(at, times)| StageFigures::new(at, times)).collect())
}

impl Report {
    /// Puts a run's counts together; `cost` is what this process can see of the engine's.
    pub fn new(plan: &Plan, record: &Record, measured: Duration, cost: &Cost) -> Report {
        let seconds = measured.as_secs_f64();
        let ours = plan.connect.is_empty();
        let cpu_s = cost.cpu.as_secs_f64();
        let name = plan.distribution.to_possible_value();
        Report {
            profile: if ours { plan.profile.name() } else { "servers" },
            nodes: plan.nodes,
            regions: plan.regions,
            clients: plan.clients,
            batch: plan.batch,
            key_size: plan.key_size,
            value_size: plan.value_size,
            distribution: name.map_or_else(String::new, |name| name.get_name().to_owned()),
            one_region_batches: plan.spread == Spread::OneRegion,
            read_ratio: plan.read_ratio,
            state: match (plan.profile, plan.state) {
                _ if !ours => "unknown",
                (Profile::Consensus | Profile::Log, _) => "none",
                (_, State::Disk) => "disk",
                (_, State::Memory) => "memory",
            },
            rate: plan.rate,
            unsent: record.unsent,
            planned_s: plan.duration.as_secs_f64(),
            warmup_s: plan.warmup.as_secs_f64(),
            keys: plan.keys,
            threads: plan.threads,
            loops: plan.loops,
            settings: plan.set.clone(),
            seed: plan.seed,
            duration_s: seconds,
            ops: record.ops,
            ops_per_s: record.ops as f64 / seconds,
            reads: record.reads,
            wrong_reads: record.wrong_reads,
            requests: record.requests,
            entries: cost.entries,
            fsyncs: cost.fsyncs,
            fsyncs_per_s: cost.fsyncs as f64 / seconds,
            bytes_written: cost.log_bytes,
            flushes: cost.flushes,
            table_bytes: cost.table_bytes,
            elections: cost.terms,
            cpu_s,
            cpu_us_per_op: if record.ops == 0 { 0.0 } else { cpu_s * 1e6 / record.ops as f64 },
            rss_bytes: machine::peak_rss_bytes(),
            latency_us: record.percentiles(),
            latency_points: record.points(),
            stages: figures(&cost.stages),
            ops_by_second: record.by_second.clone(),
            errors: record.errors.clone(),
            abandoned: 0,
            verified: None,
            log: None,
            machine: Machine::this(),
            commit: machine::commit(),
        }
    }

    /// Whether nothing was found missing or wrong.
    pub fn is_fine(&self) -> bool {
        self.wrong_reads == 0 && self.verified.as_ref().is_none_or(Verified::is_fine)
    }

    /// Writes that were folded into one entry, on average: an entry is in the log of each of its replicas.
    fn operations_an_entry(&self) -> Option<f64> {
        let entries = self.entries as f64 / self.nodes.clamp(1, REPLICAS) as f64;
        let known = self.log.is_none() && self.entries > 0;
        known.then(|| (self.ops - self.reads) as f64 / entries)
    }

    /// Rows of the table: what, how much.
    fn rows(&self) -> Vec<(&'static str, String)> {
        let latency = &self.latency_us;
        let mut rows = vec![
            ("profile", format!("{}, state {}", self.profile, self.state)),
            ("nodes, regions", format!("{}, {}", self.nodes, self.regions)),
            ("clients x batch", format!("{} x {}", self.clients, self.batch)),
            ("key, value", format!("{} B, {} B", self.key_size, self.value_size)),
            ("measured", format!("{:.1} s", self.duration_s)),
            ("operations", grouped(self.ops)),
            ("operations/s", grouped(self.ops_per_s as u64)),
        ];
        if let Some(log) = &self.log {
            rows[1] = ("groups, threads", format!("{}, {}", log.groups, log.threads));
            rows[2] = (
                "entries, span, window",
                format!("{}, {}, {}", log.entries_per_write, log.span, log.window),
            );
            rows.push(("writes/s", grouped(log.writes_per_s as u64)));
        }
        if let Some(rate) = self.rate {
            rows.push(("aimed at", format!("{} operations/s", grouped(rate))));
        }
        if self.unsent > 0 {
            let requests = grouped(self.unsent);
            rows.push(("DUE AND NEVER SENT", format!("{requests} requests: no client was free")));
        }
        if self.reads > 0 {
            rows.push(("of them reads", grouped(self.reads)));
        }
        rows.push(("log entries", grouped(self.entries)));
        if let Some(folded) = self.operations_an_entry() {
            rows.push(("operations an entry", format!("{folded:.1}")));
        }
        rows.push(("log fsyncs/s", grouped(self.fsyncs_per_s as u64)));
        rows.push(("log bytes", human_bytes(self.bytes_written)));
        if self.flushes > 0 {
            let tables = human_bytes(self.table_bytes);
            rows.push(("state store", format!("{} flushes, {tables}", self.flushes)));
        }
        if self.elections > 0 {
            rows.push(("elections", grouped(self.elections)));
        }
        rows.extend([
            ("cpu", format!("{:.1} s, {:.2} us/op", self.cpu_s, self.cpu_us_per_op)),
            ("memory, peak", human_bytes(self.rss_bytes)),
            ("latency p50", human_micros(latency.p50)),
            ("latency p90", human_micros(latency.p90)),
            ("latency p99", human_micros(latency.p99)),
            ("latency p99.9", human_micros(latency.p999)),
            ("latency max", human_micros(latency.max)),
        ]);
        if self.stages.is_some() {
            rows.push(("writes by stage", "mean, p99".to_owned()));
        }
        for stage in self.stages.iter().flatten() {
            let (mean, p99) = (human_micros(stage.mean_us), human_micros(stage.p99_us));
            rows.push((stage.stage, format!("{mean}, {p99}")));
        }
        let errors: Vec<String> =
            self.errors.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        rows.push(("errors", if errors.is_empty() { "none".into() } else { errors.join(", ") }));
        if self.abandoned > 0 {
            rows.push(("never answered", self.abandoned.to_string()));
        }
        if self.wrong_reads > 0 {
            rows.push(("WRONG READS", self.wrong_reads.to_string()));
        }
        if let Some(verified) = &self.verified {
            let (checked, missing) = (grouped(verified.checked), verified.missing);
            rows.push((
                "verified",
                format!("{checked} keys, {missing} missing, {} wrong", verified.wrong),
            ));
        }
        rows.push(("commit", self.commit.to_owned()));
        rows
    }

    /// The table.
    pub fn table(&self) -> String {
        let rows = self.rows();
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut out = String::new();
        for (name, value) in rows {
            out.push_str(&format!("{name:<width$}  {value}\n"));
        }
        if let Some(verified) = &self.verified {
            for example in &verified.examples {
                out.push_str(&format!("  {example}\n"));
            }
        }
        out
    }
}
