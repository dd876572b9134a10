//! Where replicas stand, as `status` and `ctl region get` print it: their roles, and what a change of their region waits for.

use crate::print::{hex, readable};
use catamaran::store::{Frozen, RegionStatus};
use catamaran::types::{Departed, Peer, Region, Role};
use serde::Serialize;
use std::collections::BTreeSet;

/// One member of a region.
#[derive(Serialize)]
pub struct Member {
    peer: u64,
    store: u64,
    role: &'static str,
}

/// A former replica that is not known to be gone.
#[derive(Serialize)]
struct Former {
    /// Another region than the replica's own: it was merged into that.
    region: u64,
    peer: u64,
    store: u64,
}

/// A region that is frozen.
#[derive(Serialize)]
struct Merging {
    into: u64,
    /// The entry that froze it.
    index: u64,
    term: u64,
    /// The shape that the other region must have.
    into_conf_ver: u64,
    into_version: u64,
    /// Whether this replica stands still, for the other region's here to take its data over.
    stands_still: bool,
}

/// One replica, as its node has it.
#[derive(Serialize)]
pub struct Replica {
    pub region: u64,
    pub store: u64,
    /// Always hexadecimal, as `kv` prints what is not text: an escape could not be told from a key that
    /// looks like one.
    start_hex: String,
    /// Empty: no upper end.
    end_hex: String,
    /// For people.
    #[serde(skip)]
    pub start: String,
    peer: u64,
    /// `voter`, `learner`, `incoming`, `demoting`; none: it is no member any more, and about to go.
    role: Option<&'static str>,
    pub leads: bool,
    leader_store: Option<u64>,
    pub conf_ver: u64,
    pub version: u64,
    members: Vec<Member>,
    pub term: u64,
    pub committed: u64,
    pub applied: u64,
    pub flushed: u64,
    first_index: u64,
    last_index: u64,
    pub log_bytes: u64,
    /// As last measured by its leader; 0: not yet.
    bytes: u64,
    pub quarantined: Option<String>,
    asleep: bool,
    /// It leads, and a change of the region's shape or replicas is proposed and not applied yet.
    changing: bool,
    /// The region is frozen, to be merged into another.
    merging: Option<Merging>,
    /// A region that is being merged into this one, and for which this replica waits.
    waits_for: Option<u64>,
    /// Regions that were merged into this one and have former replicas among those below.
    absorbed: BTreeSet<u64>,
    /// Those that the leader goes on asking for; the first of them, if there are many.
    former_replicas: Vec<Former>,
    former_replicas_count: u64,
}

fn name(role: Role) -> &'static str {
    match role {
        Role::Voter => "voter",
        Role::Learner => "learner",
        Role::Passing => "passing",
        Role::Incoming => "incoming",
        Role::Demoting => "demoting",
    }
}

/// The members of a region.
pub fn members(region: &Region) -> Vec<Member> {
    let member = |p: &Peer| Member { peer: p.id.0, store: p.store.0, role: name(p.role) };
    region.peers.iter().map(member).collect()
}

/// The same for people: what is not a voter is named.
pub fn places(members: &[Member]) -> String {
    let place = |member: &Member| match member.role {
        "voter" => format!("s{}", member.store),
        other => format!("s{} ({other})", member.store),
    };
    members.iter().map(place).collect::<Vec<_>>().join(" ")
}

/// A replica on a store.
pub fn replica(store: u64, status: &RegionStatus) -> Replica {
    let region = &status.region;
    let leader = status.leader.and_then(|id| region.peer(id));
    let unsettled = &status.unsettled;
    let merging = |frozen: Frozen| Merging {
        into: frozen.target.0,
        index: frozen.at.index,
        term: frozen.at.term,
        into_conf_ver: frozen.epoch.conf_ver,
        into_version: frozen.epoch.version,
        stands_still: frozen.stands_still,
    };
    let former =
        |gone: &Departed| Former { region: gone.region.0, peer: gone.id.0, store: gone.store.0 };
    let others = unsettled.former.iter().map(|gone| gone.region).filter(|id| *id != region.id);
    Replica {
        region: region.id.0,
        store,
        start_hex: hex(&region.range.start),
        end_hex: hex(&region.range.end),
        start: readable(&region.range.start),
        peer: status.peer.0,
        role: status.role().map(name),
        leads: status.leads,
        leader_store: leader.map(|peer| peer.store.0),
        conf_ver: region.epoch.conf_ver,
        version: region.epoch.version,
        members: members(region),
        term: status.term,
        committed: status.committed,
        applied: status.applied,
        flushed: status.flushed,
        first_index: status.first_index,
        last_index: status.last_index,
        log_bytes: status.log_bytes,
        bytes: status.bytes,
        quarantined: status.quarantined.clone(),
        asleep: status.asleep,
        changing: unsettled.changing,
        merging: unsettled.frozen.map(merging),
        waits_for: unsettled.waits_for.map(|region| region.0),
        absorbed: others.map(|region| region.0).collect(),
        former_replicas: unsettled.former.iter().map(former).collect(),
        former_replicas_count: unsettled.formers,
    }
}

impl Replica {
    /// What it is to its region, for people.
    pub fn part(&self) -> String {
        let part = match (self.leads, self.role) {
            _ if self.quarantined.is_some() => "quarantined",
            (true, _) => "leader",
            (false, Some("voter")) => "follower",
            (false, Some(role)) => role,
            (false, None) => "leaving",
        };
        match self.asleep {
            true => format!("{part} (asleep)"),
            false => part.to_owned(),
        }
    }

    /// The members of its region, for people.
    pub fn places(&self) -> String {
        places(&self.members)
    }

    fn formers(&self) -> Option<String> {
        let name = |gone: &Former| match gone.region == self.region {
            true => format!("p{} on s{}", gone.peer, gone.store),
            false => {
                format!("p{} of r{}, merged into it, on s{}", gone.peer, gone.region, gone.store)
            }
        };
        let mut named: Vec<String> = self.former_replicas.iter().map(name).collect();
        let count = self.former_replicas_count;
        if count > named.len() as u64 {
            named.push(format!("{} more", count - named.len() as u64));
        }
        let named = named.join("; ");
        (count > 0).then(|| {
            format!(
                "cannot be merged into another region until its former replicas are known to be gone: {named}"
            )
        })
    }
}

/// What stands in the way of changes of one region, in words: as its leader says, or, where none was asked, whoever has
/// applied most; and what is particular to single replicas.
pub fn obstacles(replicas: &[&Replica]) -> Vec<String> {
    let mut found = Vec::new();
    let says = |replica: &&&Replica| (replica.leads, replica.applied);
    let Some(best) = replicas.iter().max_by_key(says) else { return found };
    if best.changing {
        found.push("a change of its shape or its replicas is under way".to_owned());
    }
    if best.members.iter().any(|one| ["incoming", "demoting"].contains(&one.role)) {
        found.push("its replicas are changing roles".to_owned());
    }
    if let Some(Merging { into, index, term, .. }) = &best.merging {
        let mut text = format!("frozen by entry {index} of term {term}, to be merged into r{into}");
        let still = |one: &&&Replica| one.merging.as_ref().is_some_and(|it| it.stands_still);
        let still: Vec<String> =
            replicas.iter().filter(still).map(|one| format!("s{}", one.store)).collect();
        if !still.is_empty() {
            text.push_str(&format!("; stands still on {}", still.join(", ")));
        }
        found.push(text);
    }
    found.extend(best.formers());
    for one in replicas {
        if let Some(source) = one.waits_for {
            found
                .push(format!("on s{} it waits for r{source}, which is merged into it", one.store));
        }
        if let Some(reason) = &one.quarantined {
            found.push(format!("on s{} it is quarantined: {reason}", one.store));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use catamaran::store::Unsettled;
    use catamaran::types::{Epoch, KeyRange, LogPosition, PeerId, RegionId, StoreId};

    fn status(peer: u64, leads: bool, role: Role, unsettled: Unsettled) -> RegionStatus {
        let member = |id, role| Peer { id: PeerId(id), store: StoreId(id), role };
        RegionStatus {
            region: Region {
                id: RegionId(9),
                range: KeyRange::all(),
                epoch: Epoch { conf_ver: 3, version: 4 },
                peers: vec![member(1, Role::Voter), member(2, role)],
            },
            peer: PeerId(peer),
            leads,
            leader: Some(PeerId(1)),
            term: 6,
            committed: 7,
            applied: 7,
            flushed: 7,
            first_index: 6,
            last_index: 7,
            log_bytes: 0,
            bytes: 0,
            quarantined: None,
            asleep: false,
            unsettled,
        }
    }

    #[test]
    fn parts_are_told_apart() {
        let part = |peer, leads, role| {
            replica(peer, &status(peer, leads, role, Unsettled::default())).part()
        };
        assert_eq!(part(1, true, Role::Voter), "leader");
        assert_eq!(part(2, false, Role::Voter), "follower");
        assert_eq!(part(2, false, Role::Learner), "learner");
        assert_eq!(part(2, false, Role::Demoting), "demoting");
        assert_eq!(part(3, false, Role::Voter), "leaving");
        let asleep =
            RegionStatus { asleep: true, ..status(2, false, Role::Learner, Unsettled::default()) };
        assert_eq!(replica(2, &asleep).part(), "learner (asleep)");
        assert_eq!(replica(2, &asleep).places(), "s1 s2 (learner)");
    }

    #[test]
    fn what_a_change_waits_for_is_told() {
        let calm = replica(1, &status(1, true, Role::Voter, Unsettled::default()));
        assert_eq!(obstacles(&[&calm]), [""; 0]);
        assert_eq!(obstacles(&[]), [""; 0]);

        let gone =
            |region, id| Departed { region: RegionId(region), id: PeerId(id), store: StoreId(5) };
        let frozen = |stands_still| Frozen {
            target: RegionId(3),
            epoch: Epoch { conf_ver: 1, version: 2 },
            at: LogPosition { index: 7, term: 6 },
            stands_still,
        };
        let leader = Unsettled {
            changing: true,
            frozen: Some(frozen(false)),
            formers: 40,
            former: vec![gone(9, 4), gone(8, 5)],
            ..Unsettled::default()
        };
        let leader = replica(1, &status(1, true, Role::Incoming, leader));
        let follower = Unsettled {
            frozen: Some(frozen(true)),
            waits_for: Some(RegionId(11)),
            ..Unsettled::default()
        };
        let follower = replica(2, &status(2, false, Role::Incoming, follower));
        let told = obstacles(&[&follower, &leader]);
        let expected = [
            "a change of its shape or its replicas is under way",
            "its replicas are changing roles",
            "frozen by entry 7 of term 6, to be merged into r3; stands still on s2",
            "cannot be merged into another region until its former replicas are known to be gone: p4 on s5; p5 of r8, \
             merged into it, on s5; 38 more",
            "on s2 it waits for r11, which is merged into it",
        ];
        assert_eq!(told, expected);
        let json = serde_json::to_value(&leader).unwrap();
        assert_eq!(json["merging"]["into"], 3);
        assert_eq!(json["absorbed"], serde_json::json!([8]));
        assert_eq!(json["former_replicas"][0]["peer"], 4);
        assert_eq!(json["former_replicas_count"], 40);
        assert_eq!(json["role"], "voter");
        assert_eq!((&json["conf_ver"], &json["version"]), (&3.into(), &4.into()));
    }
}
