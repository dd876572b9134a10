#!/usr/bin/env bash
# Measures our log beside raft-engine and raft-log: every row of writing, engines in turn with rests, then a
# large log. Keeps the results as JSON in benches/rivals/results and as tables in src/log/comparison.md.
#
# Usage: benches/rivals/compare.sh                 (about 25 minutes on two cores, 20 GB of disk)
#        SECONDS_EACH=0.1 REST=0 REPETITIONS=1 GROUPS_OF_LOG=200 OUT=/somewhere benches/rivals/compare.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${SECONDS_EACH:-2}
rest=${REST:-1}
repetitions=${REPETITIONS:-5}
groups=${GROUPS_OF_LOG:-10000}
entries=${ENTRIES_OF_GROUP:-160}
place=${PLACE:-}
out=${OUT:-}

# BINARY: one that was built already, with `catamaran-rivals-heap` beside it.
rivals=${BINARY:-}
if [[ -z $rivals ]]; then
    cargo build --release --locked -p catamaran-rivals --features rivals
    rivals=${CARGO_TARGET_DIR:-target}/release/catamaran-rivals
fi
if [[ -z $out ]]; then
    results=benches/rivals/results
    document=src/log/comparison.md
else
    results=$out/results
    document=$out/comparison.md
fi
mkdir -p "$results"
commit=$(git rev-parse --short=12 HEAD)
git diff --quiet HEAD -- src || commit=$commit-dirty
common=(--commit "$commit")
[[ -z $place ]] || common+=(--dir "$place")

"$rivals" run "${common[@]}" --seconds "$seconds" --rest "$rest" --repetitions "$repetitions" \
    --json "$results/write.json" >/dev/null
"$rivals" space "${common[@]}" --groups "$groups" --entries "$entries" --repetitions "$repetitions" \
    --json "$results/space.json" >/dev/null
# A directory, a thread and, before long, dozens of open files for each group: once is enough to wait for. Where the system
# does not let one process open a million files (2^18 were too few) the same bytes stand in a tenth of the groups.
if (($(ulimit -Hn | sed 's/unlimited/99999999/') < 1 << 20)); then
    groups=$((groups / 10)) entries=$((entries * 10))
fi
"$rivals" space "${common[@]}" --groups "$groups" --entries "$entries" --repetitions 1 \
    --engines raft-log --json "$results/space-raft-log.json" >/dev/null
files=("$results/write.json" "$results/space.json" "$results/space-raft-log.json")

# Written beside the results first: the table may refuse, and what was there should stay then.
"$rivals" table --form document "${files[@]}" >"$results/.document"
mv "$results/.document" "$document"
cat "$document"
