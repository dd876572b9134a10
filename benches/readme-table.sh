#!/usr/bin/env bash
# Measures what README's table shows, each kind of run several times in turn, and prints the table.
# Usage: benches/readme-table.sh [REPETITIONS] > table.md        (about 90 s a repetition; Linux)
set -euo pipefail
cd "$(dirname "$0")/.."
repetitions=${1:-3}
cargo build --release --locked -p catamaran-load >&2
load=target/release/catamaran-load
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
# A virtual machine may give memory that lay idle back to its host, and gets it again page by page, slowly: what the
# kernel hands out has been touched lately, as it would have been on a machine that works.
warm() {
    dd if=/dev/zero of=/dev/shm/catamaran-warm bs=1M count=6144 2>/dev/null || true
    rm -f /dev/shm/catamaran-warm
}
run() { # NAME ARGUMENTS...
    local name=$1
    shift
    "$load" run "$@" --json "$results/$name-$repetition.json" >&2
}
for repetition in $(seq "$repetitions"); do
    warm
    run 1-durable-disk --profile durable --state disk --duration 10s --verify
    run 2-durable-memory --profile durable --state memory --duration 10s --verify
    run 3-durable-single --profile durable --clients 4096 --batch 1 --duration 5s --verify
    run 4-consensus --profile consensus --clients 4096 --batch 1 --duration 5s
    run 5-log --profile log --groups 1000 --threads 2 --entries 64 --span 64 --duration 5s --verify
done
"$load" table "$results"/*.json
