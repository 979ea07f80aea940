#!/usr/bin/env bash
# Breaks a running limn in every way that tests/it/chaos.rs knows, many times, and accounts for every record behind each;
# prints a table and exits non-zero where an account does not hold.
#   scripts/chaos.sh [--runs N] [--seed S] [--faults NAME,NAME…] [--jobs J] [--scale X]
# --runs    how often each fault is done (1), with the seeds S, S + 1 …
# --seed    the first seed (1)
# --faults  names as the table has them, with _ for spaces, or their beginnings; all of them unless given
# --jobs    how many at a time (2)
# --scale   how much of the very large inputs is made (0.02; 1: a user with 100,000 events, a million users)
# Needs what scripts/test.sh needs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
usage() {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
}
while [[ $# -gt 0 ]]; do
    case "$1" in
    -h | --help)
        usage
        exit 0
        ;;
    --runs | --seed | --faults | --jobs | --scale)
        [[ $# -ge 2 ]] || {
            echo "chaos: $1 wants a value" >&2
            exit 2
        }
        name="LIMN_CHAOS_${1#--}"
        export "${name^^}=$2"
        shift 2
        ;;
    *)
        echo "chaos: $1 is not known" >&2
        usage >&2
        exit 2
        ;;
    esac
done
scripts/with-kafka.sh true
exec cargo test --locked --test it -- chaos::table --exact --ignored --nocapture </dev/null
