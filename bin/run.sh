#!/usr/bin/env bash
# Keeps the daemon in a detached screen, and its log in a file, which is rotated at 10 MB (ten are kept):
#   bin/run.sh [start] [options of the daemon]     bin/run.sh stop | restart | status | attach
# A restart takes the options of the daemon that runs, unless it is given others, and its log. LOG names the file
# (registry.log in this folder), SCREEN_NAME the screen (registry), TWISTD a twistd of your own instead of the one in
# .venv.
# Detach from an attached screen with Ctrl-A d.
set -euo pipefail
case ${1:-} in
-h | --help | help)
    sed -n '2,/^set/{s/^# \{0,1\}//p}' "$0"
    exit 0
    ;;
esac
cd "$(dirname "$0")/.."
log=${LOG:-$PWD/registry.log}
name=${SCREEN_NAME:-registry}
# Named after the screen and not after the log: stop and status are asked without LOG too.
pidfile=$PWD/$name.pid

command -v screen >/dev/null || { echo "screen is not installed. On Debian: apt-get install screen" >&2; exit 1; }

# The daemon's pid, if it runs: the file may be a left-over and the number another program's by now.
running() {
    [ -s "$pidfile" ] && { read -r pid && read -r its_log; } <"$pidfile" && tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -q 'twistd.* registry'
}

stop() {
    kill "$pid"
    # It finishes what is under way; see "stop" in registry/daemon.py.
    for _ in $(seq 450); do
        running || { rm -f "$pidfile"; echo "Stopped."; return 0; }
        sleep 0.1
    done
    echo "It still runs (pid $pid) after 45 s." >&2
    exit 1
}

if [ "${1:-}" = restart ]; then
    shift
    if running; then
        if [ $# = 0 ]; then
            mapfile -d '' -t words <"/proc/$pid/cmdline"
            while [ ${#words[@]} -gt 0 ] && [ "${words[0]}" != registry ]; do words=("${words[@]:1}"); done
            set -- "${words[@]:1}"
        fi
        log=${LOG:-$its_log}
        stop
    fi
    set -- start "$@"
fi

case ${1:-start} in
stop)
    running || { echo "The registry does not run."; exit 0; }
    stop
    ;;
status)
    running || { echo "The registry does not run."; exit 3; }
    echo "The registry runs (pid $pid, screen $name, log $its_log)."
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
    rm -f "$pidfile"
    log=$(realpath -m "$log")
    before=$(stat -c %s "$log" 2>/dev/null || echo 0)
    [ "$before" -lt 10000000 ] || before=0 # it is rotated by the first line
    # The daemon writes the file itself, and what fails before it can joins it; screen shows the file's end, so that a
    # terminal that stands still, as in copy mode, holds up nobody. exec keeps the pid.
    # shellcheck disable=SC2016
    screen -dmS "$name" bash -c '
        printf "%s\n" $$ "$2" >"$1"; : >>"$2"; (trap "" INT; exec tail -n 0 -F "$2" 2>/dev/null) & exec >>"$2" 2>&1; shift 2; exec "$@"
    ' bash "$pidfile" "$log" "${TWISTD:-.venv/bin/twistd}" -n --pidfile= "--logfile=$log" registry "$@"
    # Until it says that it listens, or has ended; a daemon that logs less than that is believed after ten seconds.
    for turn in $(seq 100); do
        sleep 0.1
        if running; then
            if [ "$turn" = 100 ] || tail -c "+$((before + 1))" "$log" 2>/dev/null | grep 'listening on' >/dev/null; then
                echo "The registry runs (pid $pid, screen $name, log $log)."
                exit 0
            fi
        elif [ -s "$pidfile" ] && [ ! -e "/proc/$(head -n 1 "$pidfile")" ]; then
            rm -f "$pidfile"
            break
        fi
    done
    # The reason, which is not the last that a daemon logs; without one the end has to do.
    echo "The registry did not start; see $log:" >&2
    tail -c "+$((before + 1))" "$log" 2>/dev/null | grep -E '#(error|critical)\]' >&2 ||
        tail -c "+$((before + 1))" "$log" 2>/dev/null | tail -n 5 >&2 || true
    exit 1
    ;;
esac
