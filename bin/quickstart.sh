#!/usr/bin/env bash
# Sets the daemon up in .venv (the first time) and runs it in the foreground, on a Redis of its own unless REDIS_URL
# names one. Options are those of the daemon: bin/quickstart.sh --port=8080
set -euo pipefail
cd "$(dirname "$0")/.."
bin/venv.sh .venv embedded
exec .venv/bin/twistd -n --pidfile= registry "$@"
