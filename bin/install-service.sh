#!/usr/bin/env bash
# Installs the registry as a systemd service, or removes it. Safe to run again: that upgrades it.
#
#   bin/install-service.sh [--socket] [--no-start]     --socket: systemd holds the listening socket
#   bin/install-service.sh --uninstall [--purge]       --purge: also removes the tasks, the settings and the user
#
# PYTHON: the Python for its virtual environment (/usr/bin/python3, else python3). ROOT: a root folder to install into
# instead of /, to inspect the result; nothing is started then.
set -euo pipefail
umask 022
source=$(cd "$(dirname "$0")/.." && pwd)
root=${ROOT:-}
root=${root%/}
app=$root/opt/registry
units=$root/etc/systemd/system
settings=$root/etc/registry
data=$root/var/lib/registry
command=$root/usr/local/bin/registryctl
manual=$root/usr/local/share/man/man1/registryctl.1
user=registry

start=yes socket=no action=install purge=no
for option in "$@"; do
    case $option in
    --no-start) start=no ;;
    --socket) socket=yes ;;
    --uninstall) action=uninstall ;;
    --purge) purge=yes ;;
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    *) echo "Unknown option $option; see $0 --help" >&2; exit 2 ;;
    esac
done
[ "$purge" = no ] || [ "$action" = uninstall ] || { echo "--purge is only allowed with --uninstall." >&2; exit 2; }
[ -n "$root" ] || [ "$(id -u)" = 0 ] || { echo "This needs root: sudo $0 $*" >&2; exit 1; }

# Runs systemctl if systemd is running.
control() {
    if [ -z "$root" ] && [ -d /run/systemd/system ]; then systemctl "$@"; fi
}
# Enables or disables units at boot: that only changes links, so systemd need not be running.
enabled() {
    if command -v systemctl >/dev/null; then systemctl --quiet ${root:+--root="$root"} "$@"; fi
}
has_user() { grep -q "^$user:" "$root/etc/passwd" 2>/dev/null; }
with_root() { if [ -n "$root" ]; then echo "--prefix=$root"; fi; }

if [ "$action" = uninstall ]; then
    for unit in registry.socket registry.service; do # one by one: the first may never have been installed
        [ -e "$units/$unit" ] || continue
        control stop "$unit"
        enabled disable "$unit"
    done
    rm -f "$units/registry.service" "$units/registry.socket"
    control daemon-reload
    if [ "$(readlink "$command")" = "$app/bin/registryctl" ]; then rm -f "$command" "$manual"; fi
    rm -rf "$app"
    if [ "$purge" = yes ]; then
        rm -rf "$settings" "$data"
        # shellcheck disable=SC2046
        ! has_user || userdel $(with_root) "$user"
        echo "Removed the registry, its tasks, its settings and its user."
    else
        echo "Removed the registry. Kept: the tasks in $data, the settings in $settings and the user $user" \
            "(--uninstall --purge removes them)."
    fi
    exit 0
fi

# The system's own Python first, because the service cannot see one in a home folder.
python=${PYTHON:-/usr/bin/python3}
recent='import ensurepip, sys; sys.exit(sys.version_info < (3, 11))'
if [ -z "${PYTHON:-}" ] && ! "$python" -c "$recent" 2>/dev/null; then python=python3; fi
python=$(command -v "$python") || { echo "${PYTHON:-python3} was not found." >&2; exit 1; }
"$python" -c "$recent" || {
    echo "The registry needs Python 3.11 or newer with venv (on Debian: apt-get install python3-venv);" \
        "name one: PYTHON=python3.12 $0" >&2
    exit 1
}
case $root$("$python" -c 'import os, sys; print(os.path.realpath(sys.executable))') in
/home/* | /root/*)
    echo "$python is in a home folder, which the service cannot read. Name another: PYTHON=/usr/bin/python3 $0" >&2
    exit 1
    ;;
esac

if [ -n "$root" ]; then # useradd wants files to write to, in an empty ROOT as well
    mkdir -p "$root/etc"
    touch -a "$root/etc/passwd" "$root/etc/group"
fi
if ! has_user; then
    # shellcheck disable=SC2046
    useradd $(with_root) --system --user-group --home-dir /var/lib/registry --no-create-home \
        --shell /usr/sbin/nologin --comment "task queue" "$user"
fi

# Recreate the virtual environment if it is of another Python release or was broken by a system upgrade.
version=$("$python" -c 'import sys; print(sys.version_info[:2])')
if [ "$("$app/bin/python" -c 'import sys; print(sys.version_info[:2])' 2>/dev/null)" != "$version" ]; then
    rm -rf "$app"
    "$python" -m venv "$app"
fi
# Build in a copy: a build in the checkout would leave root's files there, and include files of an older build.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -R "$source/setup.py" "$source/pyproject.toml" "$source/LICENSE" "$source/registry" "$source/twisted" "$copy"
[ ! -e "$source/README.md" ] || cp "$source/README.md" "$copy"
# The service runs as another user, who must be able to read the files whatever the umask of the checkout was.
chmod -R a+rX "$copy"
# This runs as root: only files with known hashes are installed, and only our own package is built. pip is upgraded first,
# because the one of Python 3.11 is older than some wheels' metadata.
pip() { "$app/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
locked=$source/requirements.lock
sed -n '/^pip==/,/[^\\]$/p' "$locked" >"$copy/pip.lock"
pip install --require-hashes --only-binary :all: --requirement "$copy/pip.lock"
pip install --require-hashes --only-binary :all: --requirement "$locked"
# The distribution was once called registry; under that name it would still own the same files.
if pip show registry >/dev/null 2>&1; then pip uninstall --yes registry; fi
pip install --no-index --no-deps --no-build-isolation "$copy"
# Twisted writes its plugin cache beside the plugins, where the service's user may not write: do it now.
"$app/bin/twistd" --help | grep '^ *registry ' >/dev/null || { echo "twistd does not know the registry." >&2; exit 1; }

# On everybody's PATH. A program of this name that somebody else put there stays.
if [ ! -e "$command" ] || [ "$(readlink "$command")" = "$app/bin/registryctl" ]; then
    install -d "${command%/*}" "${manual%/*}"
    ln -sfn "$app/bin/registryctl" "$command"
    install -m 0644 "$source/man/registryctl.1" "$manual"
else
    echo "$command exists and is not ours; the command line is $app/bin/registryctl." >&2
fi

mkdir -p "$units"
install -d -m 0755 "$settings"
if [ ! -e "$settings/registry.env" ]; then
    # Readable by root only, because it may contain a password; systemd reads it before it changes to the user.
    install -m 0600 "$source/.env.sample" "$settings/registry.env"
fi
install -m 0644 "$source/registry.service" "$units/registry.service"
if [ "$socket" = yes ]; then
    # This overwrites an edited ListenStream; changes made with systemctl edit registry.socket are kept.
    install -m 0644 "$source/registry.socket" "$units/registry.socket"
fi
control daemon-reload
if [ "$socket" = yes ]; then enabled enable registry.socket; fi
enabled enable registry.service

if [ "$start" = no ] || [ -n "$root" ]; then
    echo "Installed. Settings: $settings/registry.env. Start it with: service registry start"
elif [ -d /run/systemd/system ]; then
    # The socket unit must bind first, so stop a service that listens by itself.
    if [ "$socket" = yes ]; then
        systemctl is-active --quiet registry.socket || systemctl stop registry.service
        systemctl start registry.socket
    fi
    systemctl restart registry.service
    systemctl --no-pager --lines=0 status registry.service
else
    echo "Installed but not started: systemd is not running. Settings: $settings/registry.env."
fi
