//! `verify`: every checksum, every continuity, every byte that should be zero.

use super::Context;
use super::padding;
use crate::cli::{FindingType, Verify};
use crate::failure::{Failure, Verdict};
use crate::load::{Loaded, LogDir};
use crate::model::{Standing, name};
use crate::output::{Page, Table, cell, hex32, print};
use catamaran::log::BLOCK;
use catamaran::log::inspect::{Finding, FindingKind};
use serde::Serialize;
use std::os::unix::fs::FileExt;

/// Size of a record's header: magic, checksum of the rest, the rest.
const RECORD_HEADER: usize = 48;

#[derive(Serialize)]
struct Verified {
    verdict: &'static str,
    records: u64,
    durable_seq: u64,
    findings: Vec<Found>,
    segments: Vec<Extent>,
    groups: Vec<Good>,
    #[serde(skip)]
    show_all_groups: bool,
}

#[derive(Serialize)]
struct Found {
    file: String,
    offset: u64,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    found: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<u64>,
    /// The last index of the group before the damage.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_good: Option<u64>,
    detail: String,
}

#[derive(Serialize)]
struct Extent {
    file: String,
    standing: Standing,
    /// From here on nothing is stated to be durable: the unused rest of the file, or a tail that
    /// nobody has been told of yet.
    durable_end: u64,
    end: u64,
    size: u64,
}

#[derive(Serialize)]
struct Good {
    group: u64,
    last_good: u64,
}

impl Page for Verified {
    fn tables(&self) -> Vec<Table> {
        let mut head = Table::pairs();
        head.pair("verdict", self.verdict);
        head.pair("records", self.records);
        head.pair("stated durable", self.durable_seq);
        let mut tables = vec![head];
        if !self.findings.is_empty() {
            let mut table = Table::new(&[
                "file",
                "offset>",
                "kind",
                "expected",
                "found",
                "group>",
                "last good>",
                "what",
            ])
            .titled("findings");
            for finding in &self.findings {
                table.row(vec![
                    finding.file.clone(),
                    finding.offset.to_string(),
                    finding.kind.to_string(),
                    cell(finding.expected.as_ref()),
                    cell(finding.found.as_ref()),
                    cell(finding.group),
                    cell(finding.last_good),
                    finding.detail.clone(),
                ]);
            }
            tables.push(table);
        }
        let mut table = Table::new(&["file", "standing", "durable to>", "records to>", "size>"])
            .titled("segments");
        for extent in &self.segments {
            let standing = match extent.standing {
                Standing::Active => "active",
                Standing::Sealed => "sealed",
                Standing::Void => "void",
            };
            table.row(vec![
                extent.file.clone(),
                standing.to_string(),
                extent.durable_end.to_string(),
                extent.end.to_string(),
                extent.size.to_string(),
            ]);
        }
        tables.push(table);
        if self.show_all_groups {
            let mut table = Table::new(&["group>", "last good>"]).titled("groups");
            for row in &self.groups {
                table.row(vec![row.group.to_string(), row.last_good.to_string()]);
            }
            tables.push(table);
        }
        tables
    }
}

fn finding_type(kind: FindingKind) -> FindingType {
    match kind {
        FindingKind::Torn => FindingType::TornTail,
        FindingKind::BeyondDurable => FindingType::BeyondDurable,
        FindingKind::Rot => FindingType::Rot,
    }
}

fn kind_name(kind: FindingKind) -> &'static str {
    match kind {
        FindingKind::Torn => "torn tail",
        FindingKind::BeyondDurable => "beyond durable",
        FindingKind::Rot => "rot",
    }
}

/// A record that was not found where it should be: perhaps the very bytes are damaged that say whose
/// life of the file it belongs to. Then its checksum says so. It begins where the one before ended, or at
/// the next block.
fn unread_record(finding: &Finding) -> Option<Finding> {
    let file = std::fs::File::open(&finding.file).ok()?;
    let block = finding.offset.next_multiple_of(BLOCK as u64);
    [finding.offset, block].into_iter().find_map(|offset| {
        let mut head = [0; RECORD_HEADER];
        file.read_exact_at(&mut head, offset).ok()?;
        let mut sum = [0; 4];
        sum.copy_from_slice(&head[4..8]);
        let (expected, found) = (u32::from_le_bytes(sum), crc32c::crc32c(&head[8..]));
        let written = head.iter().any(|byte| *byte != 0);
        (written && expected != found).then(|| Finding {
            offset,
            expected,
            found,
            ..finding.clone()
        })
    })
}

/// `verify`.
pub fn run(args: &Verify, context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let Loaded { model, report } = LogDir::find(&args.at.dir)?.load(|_, _, _| ())?;
    let good: Vec<Good> = model
        .groups
        .iter()
        .map(|(id, group)| {
            // What the records add up to, and not beyond the first damage that still matters.
            let judged = report.last_good.get(id).copied();
            let judged = judged.filter(|good| *good >= group.truncated.index);
            let whole = group.whole_to();
            Good { group: *id, last_good: judged.map_or(whole, |good| good.min(whole)) }
        })
        .collect();
    let last_good = |group: u64| {
        let here = good.iter().find(|row| row.group == group).map(|row| row.last_good);
        here.or_else(|| report.last_good.get(&group).copied())
    };
    let of_type = |kind| args.types.is_empty() || args.types.contains(&finding_type(kind));
    let wanted = |group: Option<u64>| group.is_none_or(|group| args.only.takes(group));
    let findings = report.findings.iter();
    let findings = findings.filter(|finding| wanted(finding.group) && of_type(finding.kind));
    let mut findings: Vec<Found> = findings
        .map(|finding| {
            let unread = match finding.kind == FindingKind::Rot && finding.offset > 0 {
                true if (finding.expected, finding.found) == (0, 0) => unread_record(finding),
                _ => None,
            };
            let finding = unread.as_ref().unwrap_or(finding);
            // Where a record should begin and nothing does there is no checksum to compare.
            let sums = (finding.expected, finding.found) != (0, 0)
                && finding.kind != FindingKind::BeyondDurable;
            Found {
                file: name(&finding.file),
                offset: finding.offset,
                kind: kind_name(finding.kind),
                expected: sums.then(|| hex32(finding.expected)),
                found: sums.then(|| hex32(finding.found)),
                group: finding.group,
                last_good: finding.group.and_then(last_good),
                detail: match sums && finding.expected == finding.found {
                    true => format!("{}: its magic number, checksum unharmed", finding.detail),
                    false => finding.detail.clone(),
                },
            }
        })
        .collect();
    let smudges = padding::check(&model)?;
    // The verdict is of all that was found, whatever is shown of it.
    let rotten = report.is_rotten() || !smudges.is_empty();
    // Damage to a record's header or directory hides whose it was: then every group's end matters.
    let rot_is_hidden =
        |finding: &Finding| finding.kind == FindingKind::Rot && finding.group.is_none();
    let hidden = !smudges.is_empty() || report.findings.iter().any(rot_is_hidden);
    let smudges = smudges.into_iter().filter(|_| of_type(FindingKind::Rot));
    findings.extend(smudges.map(|smudge| Found {
        file: smudge.file,
        offset: smudge.offset,
        kind: kind_name(FindingKind::Rot),
        expected: Some(hex32(smudge.expected)),
        found: Some(hex32(smudge.found)),
        group: None,
        last_good: None,
        detail: "padding is not zero: no record is harmed, but the disk changed a byte".into(),
    }));
    let segments = model.segments.iter().map(|segment| Extent {
        file: name(&segment.path),
        standing: segment.standing(model.floor),
        durable_end: segment.durable_end,
        end: segment.end,
        size: segment.info.size,
    });
    let page = Verified {
        verdict: if rotten { "damaged" } else { "sound" },
        records: report.records,
        durable_seq: report.durable,
        segments: segments.collect(),
        groups: good
            .into_iter()
            .filter(|row| args.only.takes(row.group))
            .take(args.limit.unwrap_or(usize::MAX))
            .collect(),
        findings,
        show_all_groups: hidden || args.only.is_given(),
    };
    print(&page, context.format, context.out)?;
    Ok(Verdict::bad_if(rotten))
}
