#!/usr/bin/env bash
# Keeps the daemon in a detached screen, with everything it prints in a file:
#   bin/run.sh [start] [options of the daemon]     bin/run.sh stop | status | attach
# LOG names the file (registry.log in this folder), SCREEN_NAME the screen (registry), TWISTD a twistd of your own
# instead of the one in .venv.
# Detach from an attached screen with Ctrl-A d.
set -euo pipefail
cd "$(dirname "$0")/.."
log=${LOG:-$PWD/registry.log}
name=${SCREEN_NAME:-registry}
pidfile=$log.pid

command -v screen >/dev/null || { echo "screen is not installed. On Debian: apt-get install screen" >&2; exit 1; }

# The daemon's pid, if it runs: the file may be a left-over and the number another program's by now.
running() {
    [ -s "$pidfile" ] && pid=$(cat "$pidfile") && tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q 'twistd.* registry'
}

case ${1:-start} in
stop)
    running || { echo "The registry does not run."; exit 0; }
    kill "$pid"
    # It finishes what is under way; see "stop" in registry/daemon.py.
    for _ in $(seq 450); do
        running || { rm -f "$pidfile"; echo "Stopped."; exit 0; }
        sleep 0.1
    done
    echo "It still runs (pid $pid) after 45 s." >&2
    exit 1
    ;;
status)
    running || { echo "The registry does not run."; exit 3; }
    echo "The registry runs (pid $pid, screen $name, log $log)."
    ;;
attach)
    exec screen -r "$name"
    ;;
*)
    [ "${1:-}" != start ] || shift
    if running; then
        echo "The registry runs already (pid $pid)." >&2
        exit 1
    fi
    [ -n "${TWISTD:-}" ] || bin/venv.sh .venv embedded
    # tee and not screen's own log, which is up to ten seconds late; exec keeps the pid.
    # shellcheck disable=SC2016
    screen -dmS "$name" bash -c '
        echo $$ >"$1"; exec > >(trap "" INT TERM HUP; exec tee -a "$2") 2>&1; shift 2; exec "$@"
    ' bash "$pidfile" "$log" "${TWISTD:-.venv/bin/twistd}" -n --pidfile= registry "$@"
    for _ in $(seq 50); do
        sleep 0.1
        if running; then
            sleep 1 # a wrong setting ends it within this time
            running || break
            echo "The registry runs (pid $pid, screen $name, log $log)."
            exit 0
        fi
    done
    echo "The registry did not start; the end of $log:" >&2
    tail -n 5 "$log" >&2 || true
    exit 1
    ;;
esac
