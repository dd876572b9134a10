#!/usr/bin/env bash
# Measures catamaran beside openraft (consensus, idle groups) and beside lsm-tree and, if asked, RocksDB (the state
# store), each in turn. Keeps JSON in benches/peers/results and the tables in benches/peers/results.md.
# etcd is apart, in etcd.sh: what it left in results is put into the tables, too.
#
# Usage: benches/peers/compare.sh                               (about 20 minutes on two cores, 10 GB of disk)
#        FEATURES=openraft,rocksdb benches/peers/compare.sh     (RocksDB as well: builds it, 20 to 30 minutes more)
#        PARTS="consensus" SECONDS_EACH=0.2 REPETITIONS=1 OUT=/somewhere benches/peers/compare.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
features=${FEATURES:-openraft}
parts=${PARTS:-consensus store}
seconds=${SECONDS_EACH:-1}
repetitions=${REPETITIONS:-3}
ops=${OPS:-10000000}
out=${OUT:-benches/peers}
place=${PLACE:-}

# BINARY: one that was built already.
peers=${BINARY:-}
if [[ -z $peers ]]; then
    cargo build --release --locked -p catamaran-peers --features "$features"
    peers=${CARGO_TARGET_DIR:-target}/release/catamaran-peers
fi
mkdir -p "$out/results"
commit=$(git rev-parse --short=12 HEAD)
git diff --quiet HEAD -- src || commit=$commit-dirty
commit=${COMMIT:-$commit}

for part in $parts; do
    case $part in
    consensus)
        "$peers" consensus --commit "$commit" --seconds "$seconds" --repetitions "$repetitions" \
            --json "$out/results/consensus.json" >/dev/null
        ;;
    store)
        "$peers" store --commit "$commit" --ops "$ops" --repetitions "$repetitions" ${place:+--dir "$place"} \
            --json "$out/results/store.json" >/dev/null
        ;;
    tables) ;;
    *)
        echo "no such part: $part" >&2
        exit 1
        ;;
    esac
done

files=()
for name in consensus store durable; do
    [[ ! -e $out/results/$name.json ]] || files+=("$out/results/$name.json")
done
# Written beside first: the table may refuse, and what was there should stay then.
"$peers" table --form document "${files[@]}" >"$out/results/.document"
mv "$out/results/.document" "$out/results.md"
cat "$out/results.md"
