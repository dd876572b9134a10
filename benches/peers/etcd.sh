#!/usr/bin/env bash
# Measures puts replicated and synced by three members of etcd on this machine, and the durable profile of
# catamaran-load with the same shape, in turn. Prints a table; keeps JSON in benches/peers/results (or OUT).
# etcd comes from Debian's package: apt-get install etcd-server
#
# Usage: benches/peers/etcd.sh                      (about two minutes, 10 GB of disk)
#        CLIENTS=256 BATCH=128 VALUE=64 SECONDS_EACH=10 REPETITIONS=3 OUT=/somewhere benches/peers/etcd.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
clients=${CLIENTS:-256}
batch=${BATCH:-128}
value=${VALUE:-64}
seconds=${SECONDS_EACH:-10}
repetitions=${REPETITIONS:-3}
results=${OUT:-benches/peers/results}
first_port=${FIRST_PORT:-23790}

if ! command -v etcd >/dev/null; then
    echo "etcd is not here. On Debian: apt-get install etcd-server" >&2
    exit 1
fi
# PEERS, LOAD: binaries that were built already.
peers=${PEERS:-}
load=${LOAD:-}
if [[ -z $peers || -z $load ]]; then
    cargo build --release --locked -p catamaran-peers --features etcd
    cargo build --release --locked -p catamaran-load
    peers=${CARGO_TARGET_DIR:-target}/release/catamaran-peers
    load=${CARGO_TARGET_DIR:-target}/release/catamaran-load
fi
place=$(mktemp -d ${PLACE:+-p "$PLACE"})
members=()
stop() {
    for member in "${members[@]}"; do
        kill "$member" 2>/dev/null && wait "$member" 2>/dev/null || true
    done
    members=()
}
trap 'stop; rm -rf "$place"' EXIT

peer_url() { echo "http://127.0.0.1:$((first_port + 10 * $1 + 1))"; }
client_url() { echo "http://127.0.0.1:$((first_port + 10 * $1))"; }
cluster=m1=$(peer_url 1),m2=$(peer_url 2),m3=$(peer_url 3)

# A new cluster for each repetition, as ours has one: neither carries the other's history.
start() {
    local at
    for at in 1 2 3; do
        # The data is larger than what etcd allows by default. It syncs its log unless told otherwise.
        etcd --name "m$at" --data-dir "$place/$1-m$at" --quota-backend-bytes $((8 << 30)) --log-level error \
            --listen-peer-urls "$(peer_url $at)" --initial-advertise-peer-urls "$(peer_url $at)" \
            --listen-client-urls "$(client_url $at)" --advertise-client-urls "$(client_url $at)" \
            --initial-cluster "$cluster" --initial-cluster-token "$1" >"$place/$1-m$at.log" 2>&1 &
        members+=($!)
    done
}

mkdir -p "$results"
files=()
for repetition in $(seq "$repetitions"); do
    start "r$repetition"
    "$peers" etcd --connect "$(client_url 1),$(client_url 2),$(client_url 3)" --clients "$clients" \
        --batch "$batch" --value "$value" --seconds "$seconds" --repetitions 1 \
        --json "$place/etcd-$repetition.json"
    stop
    rm -rf "$place/r$repetition"-m?
    "$load" run --profile durable --state disk --clients "$clients" --batch "$batch" --value-size "$value" \
        --duration "${seconds}s" --warmup 1s --json "$place/ours-$repetition.json" >&2
    files+=("$place/etcd-$repetition.json" "$place/ours-$repetition.json")
done
"$peers" durable --json "$results/durable.json" "${files[@]}"
