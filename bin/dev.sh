#!/usr/bin/env bash
# Runs the daemon in this terminal and restarts it on every change of its source, or of .env if there is one when it
# begins: one that is made later is not noticed. Options are those of the daemon.
# TWISTD names a twistd of your own, with watchfiles beside it, instead of the one in .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -n "${TWISTD:-}" ] || bin/venv.sh .venv embedded,test,dev
twistd=${TWISTD:-.venv/bin/twistd}
watched=(registry twisted/plugins/registry_plugin.py)
[ ! -e .env ] || watched+=(.env)
# Longer than the daemon takes to finish what is under way; after that it is killed.
command=$(printf '%q ' "$twistd" -n --pidfile= registry "$@")
exec "$(dirname "$twistd")/watchfiles" --sigint-timeout 20 "$command" "${watched[@]}"
