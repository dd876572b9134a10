#!/usr/bin/env bash
# Remote clients beside embedded ones: three nodes in one process with their load, and three servers with the load in a
# fourth process, all on this machine, each kind of run several times in turn. Prints a table for each state.
# Usage: benches/remote-table.sh [REPETITIONS [SECONDS]] > table.md        (about 2 minutes a repetition at 8 s)
set -euo pipefail
cd "$(dirname "$0")/.."
repetitions=${1:-3}
seconds=${2:-8}
ports=(${PORTS:-7301 7302 7303})
cargo build --release --locked -p catamaran-load -p catamaran-server >&2
load=target/release/catamaran-load
server=target/release/catamaran
work=$(mktemp -d)
servers=()
stop() {
    [[ ${#servers[@]} -eq 0 ]] || kill "${servers[@]}" 2>/dev/null || true
    wait "${servers[@]}" 2>/dev/null || true
    servers=()
}
trap 'stop; rm -rf "$work"' EXIT
addresses=$(printf ',127.0.0.1:%s' "${ports[@]}")
addresses=${addresses:1}
members=1=127.0.0.1:${ports[0]},2=127.0.0.1:${ports[1]},3=127.0.0.1:${ports[2]}
start() { # STATE
    for id in 1 2 3; do
        "$server" serve --store-id "$id" --data-dir "$work/data/$id" --cluster "$members" --regions 64 \
            --set "state=\"$1\"" &>"$work/$id.log" &
        servers+=($!)
    done
    # Serves once all have met and every region has a leader.
    until "$server" status --connect "$addresses" 2>/dev/null | grep -q 'directory: 3 stores up; 64 regions$'; do
        kill -0 "${servers[@]}" || { cat "$work"/*.log >&2; exit 1; }
        sleep 0.5
    done
}
run() { # NAME ARGUMENTS...
    local name=$1
    shift
    "$load" run --profile durable --duration "${seconds}s" "$@" --json "$work/$name-$repetition.json" >&2
}
for repetition in $(seq "$repetitions"); do
    for state in disk memory; do
        for shape in "256 128" "4096 1"; do
            read -r clients batch <<<"$shape"
            run "$state-$batch-embedded" --state "$state" --clients "$clients" --batch "$batch"
            start "$state"
            run "$state-$batch-remote" --connect "$addresses" --clients "$clients" --batch "$batch"
            stop
            rm -rf "$work/data"
        done
    done
done
for state in disk memory; do
    echo "State: $state"
    echo
    "$load" table "$work/$state"-*.json
    echo
done
