#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Makes this machine ready for the demo and the tests: Debian packages, then a Python environment in .venv.
# With the argument "cloud", also for the real OpenStack of `make cloud` and tests/openstack, in that .venv.
# Installs only what is missing; a second run finds everything there and ends at once. Services that packages
# bring along are neither started nor enabled, and services that already run are left alone.
set -eu

cd "$(dirname "$0")/.."
python=/usr/bin/python3
case "${1:-}" in
    "") cloud= ;;
    cloud) cloud=yes ;;
    *)
        echo "usage: tools/bootstrap.sh [cloud]" >&2
        exit 2
        ;;
esac

# --- What this machine must be, one line for each thing that is not so.

missing=0
lacks() {
    echo "bootstrap: $1" >&2
    missing=1
}

system=$(. /etc/os-release 2>/dev/null && echo "${ID:-unknown} ${VERSION_ID:-unknown}") || system=unknown
[ "$system" = "debian 12" ] || lacks "this needs Debian 12, and the system is $system"
architecture=$(dpkg --print-architecture 2>/dev/null) || architecture=$(uname -m)
[ "$architecture" = amd64 ] || lacks "this needs amd64, and the machine is $architecture"
as_root=
if [ "$(id -u)" != 0 ]; then
    as_root="sudo -n"
    $as_root true 2>/dev/null || lacks "this needs root, or sudo without a password, to install packages and run libvirtd"
fi
[ "$missing" = 0 ] || exit 1

# --- Debian packages: the first word of each line of bindep.txt, those of [cloud] only for the cloud.

installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

packages=
for package in $(awk -v cloud="$cloud" '/^[a-z]/ && (cloud || !/ cloud\]/) { print $1 }' bindep.txt); do
    installed "$package" || packages="$packages $package"
done

# Debian starts a service when its package is installed. This answer to dpkg's question whether it may (see
# invoke-rc.d(8)) says no while we install. A machine that has its own answer keeps it.
policy=/usr/sbin/policy-rc.d
forbid_services() {
    [ ! -e "$policy" ] || return 0
    trap '$as_root rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
}

# Under systemd the package also enables its service for the next boot. Only what we brought is switched off again.
disable_services() {
    [ -d /run/systemd/system ] || return 0
    $as_root systemctl disable --quiet "$@" 2>/dev/null || true
}

if [ -n "$packages" ]; then
    echo "bootstrap: installing$packages"
    services=
    installed rabbitmq-server || services="$services rabbitmq-server.service"
    installed erlang-base || services="$services epmd.service epmd.socket"
    forbid_services
    $as_root apt-get -q update
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install $packages
    # shellcheck disable=SC2086
    [ -z "$services" ] || disable_services $services
fi

# The kernels of the test guests are downloaded later, from what apt knows by then.
apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1 || $as_root apt-get -q update

# --- The Python environment, made anew when what it is made from changes.

export PIP_DISABLE_PIP_VERSION_CHECK=1
# The version comes from git; a tree without history, or one that git calls somebody else's, has none to tell.
git rev-parse HEAD >/dev/null 2>&1 || export PBR_VERSION=0.0.0
stamp=.venv/made-from
wanted=$(cat pyproject.toml requirements.txt constraints.txt setup.cfg setup.py tools/bootstrap.sh \
    tests/openstack/requirements.txt | sha256sum | cut -d' ' -f1)
made=$(cat "$stamp" 2>/dev/null) || made=
if [ "$made" = "$wanted cloud" ] || [ "$made" = "$wanted${cloud:+ cloud}" ]; then
    exit 0
fi
echo "bootstrap: making .venv"
[ -x .venv/bin/python ] || "$python" -m venv .venv
rm -f "$stamp"
set -- -c constraints.txt -r requirements.txt -e '.[test]'
[ -z "$cloud" ] || set -- "$@" -r tests/openstack/requirements.txt
# uv takes a third of pip's time. It does not read pip's configuration, so pip is asked where it cannot do it.
.venv/bin/python -m pip install -qq -c constraints.txt uv || true
.venv/bin/uv pip install -q --python .venv/bin/python "$@" || .venv/bin/python -m pip install -qq "$@"
echo "$wanted${cloud:+ cloud}" >"$stamp"
