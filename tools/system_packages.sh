#!/bin/sh
# Checks for the commands named as arguments (command=package); installs what is missing when run
# by root on a system with apt-get, and otherwise says which packages to install. PostgreSQL's
# server programs are looked for where Debian keeps them, too: they are on no PATH there.
set -eu
present() {
    command -v "$1" >/dev/null || ls /usr/lib/postgresql/*/bin/"$1" >/dev/null 2>&1
}
missing=
for pair in "$@"; do
    present "${pair%%=*}" || missing="$missing ${pair#*=}"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "keyside: installing the system packages$missing" >&2
    # The tests run servers of their own; none is to be made and started by the package.
    case $missing in *postgresql*)
        no_cluster=/etc/postgresql-common/createcluster.d/keyside-tests.conf
        mkdir -p "$(dirname "$no_cluster")"
        echo "create_main_cluster = false" >"$no_cluster"
        trap 'rm -f "$no_cluster"' EXIT
        ;;
    esac
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null
else
    echo "keyside: needs the system packages$missing (Debian: apt-get install$missing)" >&2
    exit 69
fi
