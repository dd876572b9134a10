//! [`Reporter`]: what a store still has to tell the leader of region 1 about the regions that it leads.
//!
//! **Protocol.** The leader of region 1 opens a *session* when its reign begins and announces it to every store.
//! A reporter that hears of a session begins it with a [whole](Extent::Whole) report, and from then on says only
//! what differs from what was acknowledged in it. At most one report is under way. What was said in one whose fate is
//! unknown is *doubtful*: it is said again, as it is by then, also if that is what had been acknowledged before; and it is
//! said later (`number`), so whatever arrives late, twice or not at all, the last word counts. A leader that has lost
//! the thread answers [`Again`](Verdict::Again), and the reporter begins anew.
//!
//! Nobody speaks who has nothing to say, and nobody speaks before a session was announced.

use crate::codec::report::{Extent, Led, REPORT_MAX, Report, Verdict};
use crate::types::{Epoch, Region, RegionId, StoreId};
use std::collections::{BTreeMap, BTreeSet};

/// What there is to say of a region that is led here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// Its shape.
    pub epoch: Epoch,
    /// The term of the leadership.
    pub term: u64,
    /// Bytes of its keys and values, about.
    pub bytes: u64,
    /// See [`Led::calm`].
    pub calm: Option<u64>,
}

/// Bytes that a store takes, and could take.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Space {
    /// Taken.
    pub used: u64,
    /// In all; 0: not known.
    pub capacity: u64,
}

/// Sizes that differ by less than this, or by less than an eighth, are the same.
const BYTES_APART: u64 = 1 << 20;

fn far_apart(a: u64, b: u64) -> bool {
    a.abs_diff(b) > BYTES_APART.max(a.max(b) / 8)
}

impl Mark {
    fn is_news(&self, told: &Mark) -> bool {
        (self.epoch, self.term) != (told.epoch, told.term) || far_apart(self.bytes, told.bytes)
            // The first that is known of a size is news.
            || (told.bytes == 0 && self.bytes > 0)
            || self.calm.is_some() != told.calm.is_some()
            || far_apart(self.calm.unwrap_or(0), told.calm.unwrap_or(0))
    }
}

/// A report under way.
#[derive(Debug)]
struct Sent {
    number: u64,
    extent: Extent,
    led: Vec<(RegionId, Mark)>,
    gone: Vec<(RegionId, u64)>,
    space: Space,
}

/// One store's side of the protocol.
///
/// * `told` holds exactly what was acknowledged in `session` and is not in `doubtful`.
#[derive(Debug)]
pub struct Reporter {
    store: StoreId,
    life: u64,
    number: u64,
    /// 0: none was announced yet.
    session: u64,
    /// As announced last. An answer may have named a later one since.
    heard: u64,
    /// Whether the session has been begun.
    begun: bool,
    told: BTreeMap<RegionId, Mark>,
    /// What the other side may have heard of last, and the latest term of it.
    doubtful: BTreeMap<RegionId, u64>,
    space: Space,
    sent: Option<Sent>,
}

impl Reporter {
    /// A reporter that has said nothing; `life` is drawn at each start.
    pub fn new(store: StoreId, life: u64) -> Reporter {
        Reporter {
            store,
            life,
            number: 0,
            session: 0,
            heard: 0,
            begun: false,
            told: BTreeMap::new(),
            doubtful: BTreeMap::new(),
            space: Space::default(),
            sent: None,
        }
    }

    /// A session was announced, or is still the one announced last: then what an answer has said since counts.
    pub fn announced(&mut self, session: u64) {
        if std::mem::replace(&mut self.heard, session) != session {
            self.enter(session);
        }
    }

    fn enter(&mut self, session: u64) {
        if self.session != session {
            self.session = session;
            self.begin();
        }
    }

    fn begin(&mut self) {
        self.begun = false;
        self.told.clear();
        self.doubtful.clear();
        self.space = Space::default();
        self.sent = None;
    }

    /// The session that it reports to; 0: none.
    pub fn session(&self) -> u64 {
        self.session
    }

    /// Whether a report is under way.
    pub fn waits(&self) -> bool {
        self.sent.is_some()
    }

    /// The next report, if there is something to say and nothing is under way. `led` are all regions led here, in
    /// order; `shape` gives the shape of one, if it still has it.
    pub fn next(
        &mut self,
        led: &[(RegionId, Mark)],
        space: Space,
        mut shape: impl FnMut(RegionId) -> Option<Region>,
    ) -> Option<Report> {
        if self.session == 0 || self.sent.is_some() {
            return None;
        }
        let news = led
            .iter()
            .filter(|(region, mark)| self.told.get(region).is_none_or(|told| mark.is_news(told)));
        let mut sent_led = Vec::new();
        let mut out = Vec::new();
        for (id, mark) in news.take(REPORT_MAX) {
            let Some(region) = shape(*id) else { continue };
            // The shape may be newer than the mark: what was said is what counts. Of another shape nobody knows whether
            // it is calm.
            let calm = mark.calm.filter(|_| region.epoch == mark.epoch);
            let mark = Mark { epoch: region.epoch, calm, ..*mark };
            sent_led.push((*id, mark));
            out.push(Led { region, term: mark.term, bytes: mark.bytes, calm });
        }
        let here: BTreeSet<RegionId> = led.iter().map(|(region, _)| *region).collect();
        let told = self.told.iter().map(|(region, told)| (*region, told.term));
        let doubtful = self.doubtful.iter().map(|(region, term)| (*region, *term));
        let gone = told.chain(doubtful).filter(|(region, _)| !here.contains(region));
        let gone: Vec<(RegionId, u64)> = gone.take(REPORT_MAX).collect();
        let roomier = far_apart(space.used, self.space.used)
            || far_apart(space.capacity, self.space.capacity);
        let extent = if self.begun { Extent::Difference } else { Extent::Whole };
        if out.is_empty() && gone.is_empty() && !roomier && extent == Extent::Difference {
            return None;
        }
        self.number += 1;
        let (number, led) = (self.number, sent_led);
        self.sent = Some(Sent { number, extent, led, gone: gone.clone(), space });
        Some(Report {
            store: self.store,
            life: self.life,
            number: self.number,
            session: self.session,
            extent,
            used_bytes: space.used,
            capacity_bytes: space.capacity,
            led: out,
            gone,
        })
    }

    /// Report `number` was answered, by the leader that reigns in `session`.
    pub fn answered(&mut self, number: u64, session: u64, verdict: Verdict) {
        let Some(sent) = self.sent.take_if(|sent| sent.number == number) else { return };
        if session != self.session {
            return self.enter(session);
        }
        if verdict == Verdict::Again {
            return self.begin();
        }
        self.begun = true;
        if sent.extent == Extent::Whole {
            self.told.clear();
            self.doubtful.clear();
        }
        for (region, mark) in sent.led {
            self.doubtful.remove(&region);
            self.told.insert(region, mark);
        }
        for (region, _) in sent.gone {
            self.doubtful.remove(&region);
            self.told.remove(&region);
        }
        self.space = sent.space;
    }

    /// Nobody knows what became of report `number`.
    pub fn failed(&mut self, number: u64) {
        let Some(sent) = self.sent.take_if(|sent| sent.number == number) else { return };
        let led = sent.led.iter().map(|(region, mark)| (*region, mark.term));
        for (region, term) in led.chain(sent.gone) {
            self.told.remove(&region);
            let latest = self.doubtful.entry(region).or_default();
            *latest = term.max(*latest);
        }
        self.space = Space::default();
    }
}
