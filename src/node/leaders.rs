//! When leaderships go elsewhere so that stores lead equally many regions ([`placement`](crate::placement) says which): not at
//! once, and of one region not over and over.
//!
//! * A store is given leaderships once it has led too few for some time. One that is shutting down has just given its own away, and
//!   is not to have them back.
//! * A store whose reports do not arrive seems to lead few regions however many it is given: it is given none while what it was given
//!   is reported by nobody.
//! * A store that did not take one waits anew, as if it had led too few from then on.
//! * What could not be moved stays where it is for a while, and so does what was moved and is reported no differently soon: plans
//!   count what was reported, and others have their turn.

use crate::placement::{Goal, Step};
use crate::types::{RegionId, StoreId, Time};
use std::collections::BTreeMap;
use std::time::Duration;

/// Leaderships of one plan, where regions are few.
pub(super) const TRANSFERS: usize = 8;
/// A store leads too few for so long before it is given any.
pub(super) const FEW_FOR: Duration = Duration::from_secs(10);
/// After so long leaders have reported what they lead.
const REPORTED: Duration = Duration::from_secs(3);
/// Who has not planned for so long did not keep the directory.
const FORGOTTEN: Duration = Duration::from_secs(10);
/// A leadership stays for so long.
const KEPT_FOR: Duration = Duration::from_secs(60);

/// What is remembered between plans.
#[derive(Debug)]
pub(super) struct Leaders {
    few_for: Duration,
    /// Stores that are to be given leaderships, and since when.
    few: BTreeMap<StoreId, Time>,
    /// When what was moved begins to stay.
    kept: BTreeMap<RegionId, Time>,
    /// To whom, and when, what was moved and has not been reported by its new leader.
    given: BTreeMap<RegionId, (StoreId, Time)>,
    planned_at: Time,
    /// How many were moved so far.
    #[cfg(any(test, feature = "sim"))]
    pub count: u64,
}

impl Leaders {
    /// Nothing was planned yet. Stores that lead too few wait for so long, [`FEW_FOR`] as a rule.
    pub fn new(few_for: Duration) -> Leaders {
        Leaders {
            few_for,
            few: BTreeMap::new(),
            kept: BTreeMap::new(),
            given: BTreeMap::new(),
            planned_at: Time(0),
            #[cfg(any(test, feature = "sim"))]
            count: 0,
        }
    }

    /// A plan has these steps.
    pub fn planned(&mut self, steps: &[Step], now: Time) {
        if now.since(std::mem::replace(&mut self.planned_at, now)) > FORGOTTEN {
            // Another node kept the directory meanwhile.
            self.few.clear();
        }
        self.given.retain(|_, (_, since)| since.after(KEPT_FOR) > now);
        let heirs = steps.iter().filter_map(heir);
        self.few = heirs.map(|to| (to, *self.few.get(&to).unwrap_or(&now))).collect();
        self.kept.retain(|_, since| since.after(KEPT_FOR) > now);
    }

    /// Whether there is something left to be spread.
    pub fn wait(&self) -> bool {
        !self.few.is_empty()
    }

    /// Whether it is to be [told](Self::saw) who leads a region.
    pub fn has_given(&self, region: RegionId) -> bool {
        self.given.contains_key(&region)
    }

    /// Who leads regions, as was reported.
    pub fn saw(&mut self, led: &[(RegionId, Option<StoreId>)]) {
        for (region, leader) in led {
            if self.given.get(region).is_some_and(|(to, _)| *leader == Some(*to)) {
                self.given.remove(region);
            }
        }
    }

    /// Whether the time of a step has come.
    pub fn is_ripe(&self, step: &Step, now: Time) -> bool {
        let Some(to) = heir(step) else { return true };
        let unheard =
            |(given_to, since): &(StoreId, Time)| *given_to == to && now.since(*since) > REPORTED;
        if self.given.values().any(unheard) {
            return false;
        }
        self.few.get(&to).is_some_and(|since| now.since(*since) >= self.few_for)
    }

    /// What became of a step.
    pub fn moved(&mut self, step: &Step, came_off: bool, now: Time) {
        if heir(step).is_none() {
            return;
        }
        #[cfg(any(test, feature = "sim"))]
        {
            self.count += u64::from(came_off);
        }
        match came_off {
            true => {
                self.given.extend(heir(step).map(|to| (step.region, (to, now))));
                self.kept.entry(step.region).or_insert(now.after(REPORTED));
            }
            false => {
                // Whoever does not take one would cost the next plan as much time: it waits anew.
                self.few.extend(heir(step).map(|to| (to, now)));
                self.kept.insert(step.region, now);
            }
        }
    }

    /// Whether the leadership of a region stays where it is.
    pub fn keeps(&self, region: RegionId, now: Time) -> bool {
        let stays = |since: &Time| *since <= now && now < since.after(KEPT_FOR);
        self.kept.get(&region).is_some_and(stays)
    }
}

/// Who is given a leadership so that all lead equally many.
fn heir(step: &Step) -> Option<StoreId> {
    match step.action {
        crate::placement::Action::Transfer { to } if step.goal == Goal::Spread => Some(to),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::Action;
    use crate::types::Epoch;

    fn step(region: u64, goal: Goal, to: u64) -> Step {
        let action = Action::Transfer { to: StoreId(to) };
        let (region, epoch, why) = (RegionId(region), Epoch::default(), String::new());
        Step { region, epoch, action, goal, why }
    }

    fn at(seconds: u64) -> Time {
        Time(0).after(Duration::from_secs(seconds))
    }

    /// A node that shuts down gives all that it leads away; the others then lead more than it does, and are not to give it back.
    #[test]
    fn a_store_that_has_just_given_all_away_is_given_nothing() {
        let mut leaders = Leaders::new(FEW_FOR);
        let (early, late) = (step(7, Goal::Spread, 1), step(8, Goal::Spread, 2));
        leaders.planned(std::slice::from_ref(&early), at(0));
        assert!(leaders.wait() && !leaders.is_ripe(&early, at(9)));
        let both = [early.clone(), late.clone()];
        leaders.planned(&both, at(9));
        assert_eq!(both.clone().map(|step| leaders.is_ripe(&step, at(10))), [true, false]);
        leaders.planned(&both, at(19));
        assert!(leaders.is_ripe(&late, at(19)));
        // It leads enough meanwhile: the next time it waits anew.
        leaders.planned(&[early], at(20));
        leaders.planned(&both, at(21));
        assert!(!leaders.is_ripe(&late, at(21)));
        assert!(leaders.is_ripe(&step(9, Goal::Drain, 3), at(21)), "who drains does not wait");
        leaders.planned(&[step(9, Goal::Drain, 3)], at(22));
        assert!(!leaders.wait());
    }

    #[test]
    fn what_could_not_be_moved_stays_for_a_while() {
        let mut leaders = Leaders::new(FEW_FOR);
        let (refused, begun) = (step(7, Goal::Spread, 1), step(8, Goal::Spread, 1));
        leaders.moved(&refused, false, at(0));
        leaders.moved(&begun, true, at(0));
        leaders.moved(&step(9, Goal::Drain, 1), false, at(0));
        let kept = |leaders: &Leaders, now| [7, 8, 9].map(|id| leaders.keeps(RegionId(id), now));
        assert_eq!(kept(&leaders, at(1)), [true, false, false]);
        // It is asked for again until reports have come; that puts nothing off.
        leaders.moved(&begun, true, at(2));
        assert_eq!(kept(&leaders, at(3)), [true, true, false]);
        assert_eq!(kept(&leaders, at(60)), [false, true, false]);
        leaders.planned(&[], at(63));
        assert!(leaders.kept.is_empty());
    }

    /// Its reports did not arrive: it seemed to lead nothing, however many it was given, and in the end it led nearly all.
    #[test]
    fn a_store_that_is_not_heard_is_given_no_more() {
        let mut leaders = Leaders::new(Duration::ZERO);
        let (first, next) = (step(7, Goal::Spread, 1), step(8, Goal::Spread, 1));
        leaders.planned(std::slice::from_ref(&first), at(0));
        leaders.moved(&first, true, at(0));
        assert!(leaders.has_given(RegionId(7)) && !leaders.has_given(RegionId(8)));
        leaders.planned(std::slice::from_ref(&next), at(4));
        leaders.saw(&[(RegionId(7), Some(StoreId(2)))]);
        assert!(!leaders.is_ripe(&next, at(4)), "somebody else says that he leads it");
        leaders.saw(&[(RegionId(7), Some(StoreId(1)))]);
        assert!(leaders.is_ripe(&next, at(4)));
    }

    /// Each plan asked it for some more, and waited for the answer until its patience ended; repairs waited, too.
    #[test]
    fn a_store_that_does_not_take_what_it_is_given_waits_anew() {
        let mut leaders = Leaders::new(FEW_FOR);
        let (refused, next) = (step(7, Goal::Spread, 1), step(8, Goal::Spread, 1));
        leaders.planned(std::slice::from_ref(&refused), at(0));
        leaders.planned(std::slice::from_ref(&refused), at(10));
        assert!(leaders.is_ripe(&refused, at(10)));
        leaders.moved(&refused, false, at(10));
        leaders.planned(std::slice::from_ref(&next), at(11));
        assert_eq!([19, 20].map(|now| leaders.is_ripe(&next, at(now))), [false, true]);
    }

    /// What was seen before another node kept the directory says nothing of how long a store has led too few.
    #[test]
    fn what_was_seen_in_an_earlier_reign_does_not_count() {
        let mut leaders = Leaders::new(FEW_FOR);
        let early = step(7, Goal::Spread, 1);
        leaders.planned(std::slice::from_ref(&early), at(0));
        leaders.planned(std::slice::from_ref(&early), at(3600));
        assert!(!leaders.is_ripe(&early, at(3600)));
    }
}
