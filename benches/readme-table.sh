#!/usr/bin/env bash
# Measures what README's table shows, each kind of run several times in turn, and prints the table.
# Usage: benches/readme-table.sh [REPETITIONS] > table.md        (about 100 s a repetition)
set -euo pipefail
cd "$(dirname "$0")/.."
repetitions=${1:-3}
cargo build --release --locked -p catamaran-load >&2
load=target/release/catamaran-load
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
run() { # NAME ARGUMENTS...
    local name=$1
    shift
    "$load" run "$@" --json "$results/$name-$repetition.json" >&2
}
for repetition in $(seq "$repetitions"); do
    run 1-durable-disk --profile durable --state disk --duration 10s --verify
    run 2-durable-memory --profile durable --state memory --duration 10s --verify
    run 3-durable-single --profile durable --clients 4096 --batch 1 --duration 5s --verify
    run 3-pinned --profile durable --clients 4096 --batch 1 --distribution pinned --duration 5s --verify
    run 4-consensus --profile consensus --clients 4096 --batch 1 --duration 5s
    run 5-log --profile log --groups 1000 --threads 2 --entries 64 --span 64 --duration 5s --verify
done
"$load" table "$results"/*.json
