//! Crashes at every operation of a journal; and, of some of the images, at every operation of what
//! recovers them, and once more of what recovers those.

use crate::log_disk::crash::Purposes;
use crate::log_disk::hold::HoldDisk;
use crate::log_disk::{Crash, Image, MemDisk, Step, Survivors};
use crate::script::{After, DIR, Script, check_model, options};
use catamaran::env::Disk;
use catamaran::log::{Log, inspect};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

/// Crash; crash in the recovery from it; crash in the recovery from that.
pub const LEVELS: usize = 3;

/// How a disk lies: the operations with this purpose are acknowledged and not done.
pub type Lie = fn(&str) -> bool;

/// What was looked at.
#[derive(Default, Debug)]
pub struct Tally {
    /// Images by level, what was crashed after, what survived.
    pub images: BTreeMap<(usize, &'static str, &'static str), u64>,
    /// Recoveries that were crashed in turn, by level: after the power went; after the process was killed, the
    /// power going only later; and of both together, those after which the log was written to.
    pub nested: [[u64; 3]; LEVELS],
    /// Footers that were read in place of records.
    pub footers: u64,
    /// Images that were opened once more with every footer rubbed out.
    pub without_footers: u64,
    /// Images that the inspector was shown as well.
    pub inspected: u64,
    /// Images in which a torn tail was cut.
    pub torn: u64,
    /// Images that held more than was acknowledged.
    pub beyond: u64,
    /// What the scripts did.
    pub did: BTreeMap<&'static str, u64>,
}

impl Tally {
    pub fn add(&mut self, other: Tally) {
        for (what, count) in other.images {
            *self.images.entry(what).or_default() += count;
        }
        for (what, count) in other.did {
            *self.did.entry(what).or_default() += count;
        }
        for (mine, theirs) in self.nested.iter_mut().flatten().zip(other.nested.iter().flatten()) {
            *mine += theirs;
        }
        self.footers += other.footers;
        self.without_footers += other.without_footers;
        self.inspected += other.inspected;
        self.torn += other.torn;
        self.beyond += other.beyond;
    }

    pub fn total(&self) -> u64 {
        self.images.values().sum()
    }

    fn by(&self, row: impl Fn(&(usize, &'static str, &'static str)) -> &'static str) {
        let mut rows: BTreeMap<&str, [u64; LEVELS]> = BTreeMap::new();
        for (what, count) in &self.images {
            rows.entry(row(what)).or_default()[what.0] += count;
        }
        for (name, counts) in rows {
            let total: u64 = counts.iter().sum();
            println!(
                "| {name:<22} |{total:>9} |{:>9} |{:>9} |{:>9} |",
                counts[0], counts[1], counts[2]
            );
        }
    }

    /// Prints all of it.
    pub fn print(&self) {
        let head = |what| {
            println!("| {what:<22} |   images |    first |   nested |    twice |");
            println!("|------------------------|---------:|---------:|---------:|---------:|");
        };
        head("what survived");
        self.by(|what| what.2);
        self.by(|_| "total");
        println!();
        head("crashed after");
        self.by(|what| what.1);
        println!();
        for (level, [cut, killed, lived]) in self.nested.iter().enumerate().take(LEVELS - 1) {
            println!(
                "{cut} recoveries of level {} crashed in turn, and {killed} of a killed process's log whose \
                 unsynced writes were lost only then; {lived} of them after writing on",
                level + 1
            );
        }
        println!(
            "{} footers read; {} images opened without theirs as well, {} inspected; {} torn tails cut, {} \
             images with more than was acknowledged",
            self.footers, self.without_footers, self.inspected, self.torn, self.beyond
        );
        println!("the workloads: {:?}", self.did);
    }

    /// Images crashed after an operation with this purpose.
    pub fn after(&self, purpose: &str) -> u64 {
        self.images.iter().filter(|(what, _)| what.1 == purpose).map(|(_, count)| count).sum()
    }
}

/// How densely to nest: one in so many images of each level.
#[derive(Clone, Copy, Debug)]
pub struct Density(pub [u64; LEVELS - 1]);

/// One workload's walk.
pub struct Explorer {
    pub seed: u64,
    pub density: Density,
    pub lie: Option<Lie>,
    pub tally: Tally,
}

fn mix(words: [u64; 4]) -> u64 {
    words.iter().fold(0x9e37_79b9_7f4a_7c15, |mixed, word| {
        let x = (mixed ^ word).wrapping_mul(0xd6e8_feb8_6659_fd93);
        x ^ (x >> 32)
    })
}

/// A log that recovered.
struct Recovered {
    disk: MemDisk,
    held: HoldDisk,
    log: Log,
    last: u64,
}

impl Explorer {
    /// Runs a workload of so many steps and crashes it everywhere. What is wrong, if something is.
    pub fn workload(&mut self, steps: u64) -> Result<(), String> {
        let mut script = Script::new(self.seed);
        script.run(steps);
        for (what, count) in std::mem::take(&mut script.did) {
            *self.tally.did.entry(what).or_default() += count;
        }
        let journal = std::mem::take(&mut script.disk.state().journal);
        let after = std::mem::take(&mut script.after);
        drop(script);
        self.explore(0, Crash::default(), &Purposes::default(), &journal, &after)
    }

    fn explore(
        &mut self,
        level: usize,
        mut crash: Crash,
        purposes: &Purposes,
        journal: &[Step],
        after: &After,
    ) -> Result<(), String> {
        let mut purposes = purposes.at_open();
        let mut steps = journal.iter().enumerate().peekable();
        while let Some((n, step)) = steps.next() {
            if let Step::Acked(seq) = step {
                crash.acked = crash.acked.max(*seq);
                continue;
            }
            let purpose = purposes.name(step);
            if !self.lie.is_some_and(|lies_at| lies_at(purpose)) {
                crash.step(step);
            }
            // What was acknowledged before the next operation has to survive a crash right here.
            while let Some((_, Step::Acked(seq))) = steps.peek() {
                crash.acked = crash.acked.max(*seq);
                steps.next();
            }
            for (k, survivors) in crash.choices(n).into_iter().enumerate() {
                let here =
                    || format!("level {level}, after operation {n} ({purpose}), {survivors:?}");
                let image = crash.image(survivors);
                let recovered = self
                    .check(MemDisk::of(image.clone()), crash.acked, after)
                    .map_err(|what| format!("{}: {what}", here()))?;
                *self.tally.images.entry((level, purpose, survivors.kind())).or_default() += 1;
                let dice = mix([self.seed, level as u64, n as u64, k as u64]);
                if level + 1 == LEVELS || !dice.is_multiple_of(self.density.0[level]) {
                    continue;
                }
                let again = Crash { certain: image, unsynced: Vec::new(), acked: crash.acked };
                let known = Purposes::of(&again.certain);
                self.tally.nested[level][0] += 1;
                self.nest(level, again, &known, recovered, after, dice)
                    .map_err(|what| format!("{}; {what}", here()))?;
                if crash.unsynced.is_empty() {
                    continue;
                }
                // Only the process died: the next one sees everything, and the power goes later.
                let disk = MemDisk::numbered(crash.image(Survivors::All), crash.next_inode());
                let seen = self.check(disk, crash.acked, after)?;
                self.tally.nested[level][1] += 1;
                self.nest(level, crash.clone(), &purposes, seen, after, dice).map_err(|what| {
                    format!("level {level}, killed after operation {n} ({purpose}); {what}")
                })?;
            }
        }
        Ok(())
    }

    /// Crashes what recovered a log, and, now and then, what it did afterwards.
    fn nest(
        &mut self,
        level: usize,
        crash: Crash,
        purposes: &Purposes,
        recovered: Recovered,
        after: &After,
        dice: u64,
    ) -> Result<(), String> {
        let Recovered { disk, held, log, last } = recovered;
        // The open has returned: what it found must stay.
        disk.acked(last);
        let lives = (dice >> 32).is_multiple_of(4);
        // The number behind the last one is free: the next record here, one of the open's own perhaps, is not the lost one.
        let known: After = after.range(..=last).map(|(seq, model)| (*seq, model.clone())).collect();
        if !lives {
            drop(log);
            let journal = std::mem::take(&mut disk.state().journal);
            return self.explore(level + 1, crash, purposes, &journal, &known);
        }
        self.tally.nested[level][2] += 1;
        let salt = 1_000_000 * (level as u64 + 1);
        let mut script = Script::resume((disk.clone(), held), log, known, dice, salt);
        script.run(6);
        let after = std::mem::take(&mut script.after);
        drop(script);
        let journal = std::mem::take(&mut disk.state().journal);
        self.explore(level + 1, crash, purposes, &journal, &after)
    }

    /// Opens what a crash left and holds it against the model.
    fn check(&mut self, disk: MemDisk, acked: u64, after: &After) -> Result<Recovered, String> {
        let image = disk.state().image.clone();
        let walk = AssertUnwindSafe(|| self.judge(disk, &image, acked, after));
        catch_unwind(walk).unwrap_or_else(|cause| {
            let said = cause.downcast_ref::<String>().map(String::as_str);
            Err(said.or(cause.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned())
        })
    }

    fn judge(
        &mut self,
        disk: MemDisk,
        image: &Image,
        acked: u64,
        after: &After,
    ) -> Result<Recovered, String> {
        let open = |disk: Arc<dyn Disk>| {
            Log::open(disk, Path::new(DIR), options())
                .map_err(|error| format!("does not open: {error}"))
        };
        let turn = self.tally.total();
        if turn % 16 == 3 {
            // Whoever only looks sees no damage where there is none.
            let report = inspect::verify(&MemDisk::of(image.clone()), Path::new(DIR))
                .map_err(|error| error.to_string())?;
            if report.is_rotten() {
                return Err(format!("taken for rotten: {report:?}"));
            }
            self.tally.inspected += 1;
        }
        let held = HoldDisk::over(Arc::new(disk.clone()));
        let (log, recovery) = open(Arc::new(held.clone()))?;
        if !recovery.quarantined.is_empty() || !recovery.harmless.is_empty() {
            return Err(format!("damage where none is: {recovery:?}"));
        }
        if recovery.last_seq < acked {
            return Err(format!("{acked} acknowledged: {recovery:?}"));
        }
        let Some((_, model)) = after.range(..=recovery.last_seq).next_back() else {
            return Err("no model".into());
        };
        check_model(&log, model)?;
        self.tally.footers += recovery.footers;
        self.tally.torn += u64::from(recovery.torn.is_some());
        self.tally.beyond += u64::from(recovery.last_seq > acked);
        if recovery.footers > 0 && turn.is_multiple_of(8) {
            // A footer is a shortcut: without it, the records say the same.
            let mut image = image.clone();
            for file in image.files.values_mut() {
                if let Some(trailer) = Arc::make_mut(file).last_chunk_mut::<64>() {
                    trailer.fill(0);
                }
            }
            let (log, same) = open(Arc::new(MemDisk::of(image)))?;
            if (same.last_seq, same.footers) != (recovery.last_seq, 0) {
                return Err(format!("without footers {same:?}, with {recovery:?}"));
            }
            check_model(&log, model)?;
            self.tally.without_footers += 1;
        }
        Ok(Recovered { disk, held, log, last: recovery.last_seq })
    }
}
