#!/usr/bin/env bash
# Runs the daemon and restarts it on every change of its source or of .env. Options are those of the daemon.
set -euo pipefail
cd "$(dirname "$0")/.."
bin/venv.sh .venv embedded,test,dev
watched=(registry twisted/plugins/registry_plugin.py)
[ ! -e .env ] || watched+=(.env)
# Longer than the daemon takes to finish what is under way; after that it is killed.
exec .venv/bin/watchfiles --sigint-timeout 20 "$(printf '%q ' .venv/bin/twistd -n --pidfile= registry "$@")" "${watched[@]}"
