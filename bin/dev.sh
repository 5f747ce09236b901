#!/usr/bin/env bash
# Runs the daemon in this terminal and restarts it whenever its source changes, or .env. A .env that is created after the
# start is not noticed. Takes the options of the daemon.
# TWISTD names another twistd than the one in .venv; watchfiles must be installed beside it.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -n "${TWISTD:-}" ] || bin/venv.sh .venv embedded,test,dev
twistd=${TWISTD:-.venv/bin/twistd}
watched=(registry twisted/plugins/registry_plugin.py)
[ ! -e .env ] || watched+=(.env)
# Longer than the daemon needs to finish the requests in progress; after that it is killed.
command=$(printf '%q ' "$twistd" -n --pidfile= registry "$@")
exec "$(dirname "$twistd")/watchfiles" --sigint-timeout 20 "$command" "${watched[@]}"
