#!/usr/bin/env bash
# Lints, type checks and tests, in a separate virtual environment: .venv-test, or the one that VENV names.
# Arguments are passed to pytest: bin/test.sh -m 'not slow'. Without any, the tests run in several processes.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
venv=${VENV:-.venv-test}
bin/venv.sh "$venv" embedded,test,dev || exit 1
# Also run the tests that install from the package index: bin/venv.sh has just reached it.
export REGISTRY_TEST_NETWORK=${REGISTRY_TEST_NETWORK-1}
failed=()
step() {
    local name=$1
    shift
    echo "== $name" >&2
    "$@" || failed+=("$name")
}
python=$venv/bin/python
step "ruff check" "$python" -m ruff check
step "ruff format" "$python" -m ruff format --check
step "mypy" "$python" -m mypy
# Tests mostly wait, so run twice as many processes as there are cores.
[ $# -gt 0 ] || set -- -n "$(($(nproc) * 2))" --dist loadfile --no-loadscope-reorder
step "pytest" "$python" -m pytest "$@"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'Failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
