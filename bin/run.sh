#!/usr/bin/env bash
# Runs the daemon in a detached screen and logs to a file, which is rotated at 10 MB (ten are kept):
#   bin/run.sh [start] [options of the daemon]     bin/run.sh stop | restart | status | attach
# A restart keeps the log of the running daemon, and its options unless others are given. LOG names the log file
# (registry.log in this folder), SCREEN_NAME the screen (registry), TWISTD another twistd than the one in .venv.
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
# Named after the screen, not after the log, because stop and status are also called without LOG.
pidfile=$PWD/$name.pid

command -v screen >/dev/null || { echo "screen is not installed. On Debian: apt-get install screen" >&2; exit 1; }

# Sets the daemon's pid if it runs. The file may be stale, and its number may belong to another program by now.
running() {
    [ -s "$pidfile" ] && { read -r pid && read -r its_log; } <"$pidfile" && tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -q 'twistd.* registry'
}

stop() {
    kill "$pid"
    # The daemon finishes the requests in progress; see "stop" in registry/daemon.py.
    for _ in $(seq 450); do
        running || { rm -f "$pidfile"; echo "Stopped."; return 0; }
        sleep 0.1
    done
    echo "It is still running (pid $pid) after 45 s." >&2
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
    running || { echo "The registry is not running."; exit 0; }
    stop
    ;;
status)
    running || { echo "The registry is not running."; exit 3; }
    echo "The registry is running (pid $pid, screen $name, log $its_log)."
    ;;
attach)
    exec screen -r "$name"
    ;;
*)
    [ "${1:-}" != start ] || shift
    if running; then
        echo "The registry is already running (pid $pid)." >&2
        exit 1
    fi
    [ -n "${TWISTD:-}" ] || bin/venv.sh .venv embedded
    rm -f "$pidfile"
    log=$(realpath -m "$log")
    before=$(stat -c %s "$log" 2>/dev/null || echo 0)
    [ "$before" -lt 10000000 ] || before=0 # the first line will rotate the file
    # The daemon writes the log itself; errors before that are redirected to the same file. screen only shows the end of
    # the file, so that a blocked terminal, as in copy mode, does not block the daemon. exec keeps the pid.
    # shellcheck disable=SC2016
    screen -dmS "$name" bash -c '
        printf "%s\n" $$ "$2" >"$1"; : >>"$2"; (trap "" INT; exec tail -n 0 -F "$2" 2>/dev/null) & exec >>"$2" 2>&1; shift 2; exec "$@"
    ' bash "$pidfile" "$log" "${TWISTD:-.venv/bin/twistd}" -n --pidfile= "--logfile=$log" registry "$@"
    # Wait until it logs that it listens, or has ended. After ten seconds assume that it runs: its log level may hide that line.
    for turn in $(seq 100); do
        sleep 0.1
        if running; then
            if [ "$turn" = 100 ] || tail -c "+$((before + 1))" "$log" 2>/dev/null | grep 'listening on' >/dev/null; then
                echo "The registry is running (pid $pid, screen $name, log $log)."
                exit 0
            fi
        elif [ -s "$pidfile" ] && [ ! -e "/proc/$(head -n 1 "$pidfile")" ]; then
            rm -f "$pidfile"
            break
        fi
    done
    # Show the error lines, which are not the last lines of the log; without any, show the end of the log.
    echo "The registry did not start; see $log:" >&2
    tail -c "+$((before + 1))" "$log" 2>/dev/null | grep -E '#(error|critical)\]' >&2 ||
        tail -c "+$((before + 1))" "$log" 2>/dev/null | tail -n 5 >&2 || true
    exit 1
    ;;
esac
