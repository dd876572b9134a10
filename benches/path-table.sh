#!/usr/bin/env bash
# Measures the whole path at every size of request, both state stores beside each other, each kind of run several times in
# turn: three nodes in one process over loopback TCP, synced, applied, read back. Prints one table, then many regions.
# Usage: benches/path-table.sh [REPETITIONS [SECONDS]] > table.md        (about 5 minutes a repetition at 6 s)
set -euo pipefail
cd "$(dirname "$0")/.."
repetitions=${1:-3}
seconds=${2:-6}
cargo build --release --locked -p catamaran-load >&2
load=target/release/catamaran-load
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
run() { # NAME ARGUMENTS...
    local name=$1
    shift
    "$load" run --profile durable --duration "${seconds}s" --verify "$@" --json "$results/$name-$repetition.json" >&2
}
for repetition in $(seq "$repetitions"); do
    for state in memory disk; do
        # One write an entry: four writers in each region, nothing folded; and each writer with a region of his own.
        run "1-$state" --state $state --regions 1024 --clients 4096 --batch 1 --distribution pinned --set entry_bytes=1
        run "1-alone-$state" --state $state --regions 1024 --clients 1024 --batch 1 --distribution pinned
        # Each client stays in its region, and so 64 share one; below, each request goes to any.
        run "2-$state" --state $state --clients 4096 --batch 1 --distribution pinned
        run "2-any-$state" --state $state --clients 4096 --batch 1
        run "3-$state" --state $state --clients 1024 --batch 16
        run "4-$state" --state $state --clients 256 --batch 128
        run "5-$state" --state $state --clients 64 --batch 1024
    done
    # What ten thousand regions cost, beside the same with 64.
    run 6-regions-64 --state memory --clients 1024 --batch 128
    run 7-regions-10000 --state memory --clients 1024 --batch 128 --regions 10000
done
"$load" table "$results"/*.json
