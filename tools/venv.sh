#!/bin/sh
# Makes the virtual environment .venv with the locked dependencies, and prints its real path.
#
# Tests and the demo run processes under other accounts when started by root, so interpreter and
# environment must then be readable by everybody: a Python under /root is passed over, and where
# the checkout itself can't be reached by others, .venv is a link to a directory under /var/tmp.
set -eu
cd "$(dirname "$0")/.."

say() { echo "keyside: $*" >&2; }

# Whether every directory above (and including) $1 can be entered by everybody.
reachable() {
    place=$(readlink -f "$1") || return 1
    while :; do
        mode=$(stat -c %a "$place")
        case $mode in *[1357]) ;; *) return 1 ;; esac
        [ "$place" = / ] && return 0
        place=$(dirname "$place")
    done
}

suitable() {
    path=$(command -v "$1" 2>/dev/null) || return 1
    path=$("$path" -c 'import sys; print(sys.executable)' 2>/dev/null) || return 1
    "$path" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || return 1
    [ "$(id -u)" != 0 ] || reachable "$path"
}

find_python() {
    for candidate in ${PYTHON:-} python3 /usr/bin/python3 python3.14 python3.13 python3.12 \
        python3.11 /usr/local/bin/python3; do
        if suitable "$candidate"; then
            echo "$path"
            return 0
        fi
    done
    return 1
}

if ! python=$(find_python); then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing the system packages python3 and python3-venv"
        apt-get update -qq >&2 && apt-get install -y -qq python3 python3-venv >&2
        python=$(find_python) || true
    fi
fi
if [ -z "${python:-}" ]; then
    say "needs Python 3.11 or newer with venv (Debian: apt-get install python3 python3-venv)."
    [ "$(id -u)" != 0 ] || say "Run by root, it must be one that other accounts can run too."
    exit 69
fi

if [ ! -e .venv ]; then
    if [ "$(id -u)" = 0 ] && ! reachable .; then
        target=$(mktemp -d /var/tmp/keyside-venv-XXXXXXXX)
        chmod 755 "$target"
        ln -s "$target" .venv
    fi
fi
venv=$(readlink -f .venv 2>/dev/null || echo "$PWD/.venv")
lock=requirements.lock
if [ ! -x "$venv/bin/python" ] || ! cmp -s "$lock" "$venv/keyside.lock"; then
    say "making the virtual environment with $python"
    "$python" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock" >&2
    cp "$lock" "$venv/keyside.lock"
fi
echo "$venv"
