#!/usr/bin/env bash
# Latency at half of what the path can take: per state the peak is the median of three closed-loop runs, then three
# open-loop runs at half of it. On disk either has so long a warm-up that compactions are being paid for. Prints a table.
# Usage: benches/half-peak.sh > table.md        (about 6 minutes)
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --locked -p catamaran-load >&2
load=target/release/catamaran-load
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
run() { # NAME ARGUMENTS...
    local name=$1
    shift
    "$load" run --profile durable "$@" --json "$results/$name.json" >&2
}
figure() { # NAME FIELD: the first of that name in the result, without its fraction
    grep -om1 "\"$2\": *[0-9]*" "$results/$1.json" | grep -o '[0-9]*$'
}
latencies() { # NAMES...: p50, p99 and p99.9 of each in ms
    local point
    for point in p50 p99 p999; do
        for name in "$@"; do figure "$name" $point; done | awk '{printf "%s%.1f", (NR > 1 ? ", " : ""), $1 / 1000}'
        echo -n " | "
    done
}
echo "| state | peak, operations/s | rate | p50, ms | p99, ms | p99.9, ms |"
echo "|---|---|---|---|---|---|"
for state in memory disk; do
    warmups=(3 3)
    [[ $state = memory ]] || warmups=(20 40)
    for repetition in 1 2 3; do run "peak-$repetition" --state $state --warmup ${warmups[0]}s --duration 10s; done
    peaks=$(for repetition in 1 2 3; do figure "peak-$repetition" ops_per_s; done | sort -n)
    half=$(awk 'NR == 2 {printf "%d", $1 / 2}' <<<"$peaks")
    for repetition in 1 2 3; do run "half-$repetition" --state $state --rate "$half" --warmup ${warmups[1]}s --duration 10s; done
    row=$(awk '{printf "%s%dk", (NR > 1 ? ", " : ""), $1 / 1000}' <<<"$peaks")
    echo "| $state | $row | $((half / 1000))k | $(latencies half-1 half-2 half-3)"
done
echo
echo "Commit $(git rev-parse --short=12 HEAD), $(nproc) cores. Peaks in order of size, latencies in that of the runs."
