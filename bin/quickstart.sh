#!/usr/bin/env bash
# Installs the daemon in .venv (the first time) and runs it in the foreground, with its embedded Redis unless REDIS_URL
# names another. Takes the options of the daemon: bin/quickstart.sh --port=8080
set -euo pipefail
cd "$(dirname "$0")/.."
bin/venv.sh .venv embedded
exec .venv/bin/twistd -n --pidfile= registry "$@"
