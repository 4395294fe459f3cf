#!/bin/sh
# Checks for the commands named as arguments (command=package); installs what is missing when run
# by root on a system with apt-get, and otherwise says which packages to install.
set -eu
missing=
for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null || missing="$missing ${pair#*=}"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "keyside: installing the system packages$missing" >&2
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null
else
    echo "keyside: needs the system packages$missing (Debian: apt-get install$missing)" >&2
    exit 69
fi
