# SPDX-License-Identifier: Apache-2.0
"""Stand-ins of devstack's functions, and a node on which the plugin's stages run with them.

They write real files, and start the one process that the plugin's next step talks to: the software TPM. What
they do is what devstack's functions of those names do, as far as the plugin relies on it. A node uses our own
programs, or a stand-in that makes the same files and takes no time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lab import REPOSITORY
from lab.processes import kill_pid

DEVSTACK = REPOSITORY / "devstack"

# ENABLED_SERVICES, DISABLED_SERVICES and settings of local.conf come in by the environment.
_FUNCTIONS = r"""
set -eE
trap 'echo "failed: $BASH_COMMAND" >&2' ERR
DEST=$SITE/dest DATA_DIR=$SITE/data NOVA_CONF=$SITE/nova.conf NOVA_API_PASTE_INI=$SITE/api-paste.ini
QEMU_CONF=$SITE/qemu.conf TEMPEST_CONFIG=$SITE/tempest.conf NOVA_FILTERS=ComputeFilter,ServerGroupFilter
STACK_USER=$(id -un) ENABLE_DEBUG_LOG_LEVEL=False REGION_NAME=RegionOne SERVICE_TIMEOUT=60
SERVICE_PROTOCOL=http SERVICE_HOST=192.0.2.1 LIBVIRT_GROUP=libvirt
NOVA_VMI_ATTEST_DIR=$REPOSITORY NOVA_VMI_ATTEST_CONF_DIR=$SITE/etc NOVA_VMI_ATTEST_RUN_DIR=$SITE/run

call() { echo "$*" >>"$SITE/calls"; }
sudo() { "$@"; }
die() { shift; echo "$*" >&2; exit 1; }
define_plugin() { call "define_plugin $1"; }
is_service_enabled() {
    local s
    for s in "$@"; do [[ ,$ENABLED_SERVICES, == *,$s,* ]] && return 0; done
    return 1
}
enable_service() {
    local s
    for s in "$@"; do
        [[ ,$DISABLED_SERVICES, == *,$s,* ]] || is_service_enabled "$s" || ENABLED_SERVICES+=",$s"
    done
}
setup_develop() { call "setup_develop $1"; }
get_python_exec_prefix() { echo "$PROGRAMS"; }
get_transport_url() { echo "fake:/"; }
database_connection_url() { echo "sqlite:///$SITE/$1.sqlite"; }
recreate_database() { rm -f "$SITE/$1.sqlite"; }
setup_logging() { iniset "$1" DEFAULT log_color False; }
iniset() { "$PYTHON" -I "$SITE/ini.py" set "$@"; }
iniget() { "$PYTHON" -I "$SITE/ini.py" get "$@"; }
iniset_multiline() { "$PYTHON" -I "$SITE/ini.py" set "$@"; }
iniget_multiline() { "$PYTHON" -I "$SITE/ini.py" all "$@"; }
inidelete() { "$PYTHON" -I "$SITE/ini.py" delete "$@"; }
configure_keystoneauth() {
    iniset "$1" "$3" auth_type password
    iniset "$1" "$3" auth_url http://192.0.2.1/identity
    iniset "$1" "$3" username "$2"
}
configure_keystone_authtoken_middleware() {
    configure_keystoneauth "$1" "$2" "$3"
    iniset "$1" "$3" service_type "$4"
}
create_service_user() { call "create_service_user $*"; }
get_or_create_service() { call "get_or_create_service $1 $2"; }
get_or_create_endpoint() { call "get_or_create_endpoint $*"; }
openstack() {
    call "openstack $*"
    case "$*" in
        *"image show"*) [[ -e $SITE/image ]] && echo image-id ;;
        *"image create attested --"*) touch "$SITE/image" ;;
        *"image create"*) echo "id-of-$5" ;;
    esac
}
install_package() { call "install_package $*"; }
trueorfalse() { [[ ${!2:-$1} == True ]] && echo True || echo False; }
apt-cache() { printf '%s\n' linux-image-cloud-amd64 '  Depends: linux-image-6.1.0-9-cloud-amd64'; }
apt-get() { echo package >"$2_6.1.9_amd64.deb"; }
dpkg-deb() { mkdir -p "$3/boot"; echo kernel >"$3/boot/vmlinuz-6.1.0-9-cloud-amd64"; }
apache_site_config_for() { echo "$SITE/apache-$1.conf"; }
write_uwsgi_config() {
    iniset "$1" uwsgi module "$2"
    echo "ProxyPass $3" >"$(apache_site_config_for "$5")"
}
remove_uwsgi_config() { rm -f "$1"; call "disable_apache_site $2"; }
restart_service() { call "restart_service $1"; }
wait_for_service() { call "wait_for_service $2"; }
run_process() {
    is_service_enabled "$1" || return 0
    call "run_process $1 user=${4:-stack} env=${5:-}"
    if [[ $1 == vmi-swtpm ]]; then $2 >/dev/null 2>&1 & echo $! >>"$SITE/pids"; fi
}
stop_process() {
    is_service_enabled "$1" || return 0
    call "stop_process $1"
    if [[ $1 == vmi-swtpm ]]; then
        kill "$(tail -n 1 "$SITE/pids")"
        while kill -0 "$(tail -n 1 "$SITE/pids")" 2>/dev/null; do sleep 0.1; done
    fi
}

source "$REPOSITORY/devstack/override-defaults"
source "$REPOSITORY/devstack/settings"
if [[ -n ${1:-} ]]; then
    source "$REPOSITORY/devstack/plugin.sh" "$@"
fi
echo "$NOVA_NOTIFICATION_FORMAT $ENABLED_SERVICES" >"$SITE/settings"
"""

# devstack's ini functions: an option may stand several times; new lines come first in their section.
_INI = r"""
import sys
verb, path, section, option, *values = sys.argv[1:]
try:
    lines = open(path).read().splitlines()
except FileNotFoundError:
    lines = []
if verb == "set" and f"[{section}]" not in lines:
    lines += ["", f"[{section}]"]
if f"[{section}]" not in lines:
    sys.exit(0)
start = lines.index(f"[{section}]") + 1
end = next((i for i in range(start, len(lines)) if lines[i].startswith("[")), len(lines))
body = lines[start:end]
ours = [line for line in body if line.partition("=")[0].strip() == option]
if verb in ("get", "all"):
    print(" ".join(line.partition("=")[2].strip() for line in ours))
else:
    new = [f"{option} = {value}" for value in values]
    body = new + [line for line in body if line not in ours]
    open(path, "w").write("\n".join(lines[:start] + body + lines[end:]) + "\n")
"""

# nova-vmi-attest-manage: the files that it makes.
_MANAGE = r"""#!/bin/sh
echo "manage $*" | sed 's/ --config-file [^ ]*//' >>"$SITE/calls"
shift 2
case "$*" in
    "key create") echo key >"$SITE/etc/verifier.key" ;;
    "key show --jwks") echo jwks ;;
    "ca create") echo key >"$SITE/etc/authority.key"; echo certificate >"$SITE/etc/authority.pem" ;;
    "tpm ek-certificate "*) echo certificate >"$3" ;;
esac
"""

_NOVA_CONF = """\
[DEFAULT]
my_ip = 192.0.2.1

[filter_scheduler]
enabled_filters = ComputeFilter,ServerGroupFilter

[oslo_messaging_notifications]
driver = messagingv2
"""


@dataclass(slots=True)
class Node:
    """One machine on which ``stack.sh`` would run: its files, and the services it is to have.

    :param services: of devstack, separated by commas; ours follow from them.
    :param disabled: what ``disable_service`` names in local.conf.
    :param port: of the software TPM; the next one is its control channel.
    :param ours: whether our own programs are used.
    :param settings: what local.conf sets besides.
    """

    site: Path
    services: str
    port: int = 0
    ours: bool = False
    disabled: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    def prepare(self) -> None:
        """Write the files that the plugin finds when it runs."""
        (self.site / "data").mkdir(parents=True)
        (self.site / "stand-ins.sh").write_text(_FUNCTIONS)
        (self.site / "ini.py").write_text(_INI)
        programs = self.site / "bin"
        programs.mkdir()
        (programs / "nova-vmi-attest-manage").write_text(_MANAGE)
        (programs / "nova-vmi-attest-manage").chmod(0o755)
        (self.site / "qemu.conf").write_text('user = "libvirt-qemu"\n')
        self.configure_nova()

    def configure_nova(self) -> None:
        """What devstack does with Nova's files in each run of ``stack.sh``: it writes them anew."""
        (self.site / "nova.conf").write_text(_NOVA_CONF)
        paste = Path(sys.prefix) / "etc" / "nova" / "api-paste.ini"
        (self.site / "api-paste.ini").write_text(paste.read_text())

    def stage(self, *words: str) -> None:
        """Run one stage in a shell of its own, as devstack sources the plugin anew for each."""
        done = self.run(*words)
        assert done.returncode == 0, done.stdout

    def stack(self) -> None:
        """All stages of one ``stack.sh``."""
        self.configure_nova()
        for phase in ("pre-install", "install", "post-config", "extra", "test-config"):
            self.stage("stack", phase)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The same, with whatever end it has; its output holds what it said."""
        environment = {
            **os.environ,
            "SITE": str(self.site),
            "REPOSITORY": str(REPOSITORY),
            "PYTHON": sys.executable,
            "PROGRAMS": str(Path(sys.executable).parent if self.ours else self.site / "bin"),
            "ENABLED_SERVICES": self.services,
            "DISABLED_SERVICES": self.disabled,
            "NOVA_VMI_ATTEST_TPM_DEVICE": str(self.site / "no-tpm"),
            "NOVA_VMI_ATTEST_SWTPM_PORT": str(self.port),
            **self.settings,
        }
        return subprocess.run(
            ["bash", str(self.site / "stand-ins.sh"), *words],
            env=environment, check=False, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def calls(self, verb: str) -> list[list[str]]:
        """The arguments of each call of one stand-in, in order."""
        lines = [line.split() for line in self.text("calls").splitlines()]
        return [words[1:] for words in lines if words[0] == verb]

    def text(self, name: str) -> str:
        """A file's text; "" when there is none."""
        path = self.site / name
        return path.read_text() if path.exists() else ""

    def lines(self, name: str, section: str) -> set[str]:
        """The options of one section as ``option = value``."""
        found, current = set(), ""
        for line in self.text(name).splitlines():
            if line.startswith("["):
                current = line.strip("[]")
            elif current == section and line.strip():
                found.add(line)
        return found

    def end(self) -> None:
        """Stop what it started."""
        for pid in self.text("pids").split():
            kill_pid(int(pid))
