# SPDX-License-Identifier: Apache-2.0
"""The devstack plugin, stage by stage, against stand-ins of devstack's own functions and a real software TPM.

The stand-ins write real files and start real processes where the plugin's next step needs them; what is
checked is what the plugin leaves: a configuration that our programs accept, a registered host, the filter
in nova.conf, and nothing after it was cleaned.
"""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import REPOSITORY
from lab.processes import free_ports, kill_pid

from nova_vmi_attest import conf as configuration
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.records.registry import HostRegistry

# devstack's functions, as far as the plugin uses them (its inc/ini-config and functions-common say what
# they do).
STAND_INS = r"""
set -e
DEST=$SITE/dest DATA_DIR=$SITE/data NOVA_CONF=$SITE/nova.conf
STACK_USER=$(id -un) ENABLE_DEBUG_LOG_LEVEL=False ENABLED=",n-sch,"
NOVA_VMI_ATTEST_DIR=$REPOSITORY NOVA_VMI_ATTEST_CONF_DIR=$SITE/etc
sudo() { "$@"; }
enable_service() { local s; for s in "$@"; do ENABLED+="$s,"; done; }
is_service_enabled() {
    local s
    for s in "$@"; do [[ $ENABLED == *,$s,* ]] && return 0; done
    return 1
}
setup_develop() { echo "setup_develop $1" >>"$SITE/calls"; }
get_python_exec_prefix() { dirname "$PYTHON"; }
get_transport_url() { echo "fake:/"; }
database_connection_url() { echo "sqlite:///$SITE/$1.sqlite"; }
recreate_database() { rm -f "$SITE/$1.sqlite"; }
iniset() { "$PYTHON" "$SITE/ini.py" set "$@"; }
iniget() { "$PYTHON" "$SITE/ini.py" get "$@"; }
iniset_multiline() { "$PYTHON" "$SITE/ini.py" multiline "$@"; }
die() { shift; echo "$*" >&2; exit 1; }
run_process() {
    echo "run_process $1 user=${4:-$STACK_USER}" >>"$SITE/calls"
    if [[ $1 == vmi-swtpm ]]; then $2 >/dev/null 2>&1 & echo $! >>"$SITE/pids"; fi
}
stop_process() { echo "stop_process $1" >>"$SITE/calls"; }
source "$REPOSITORY/devstack/settings"
source "$REPOSITORY/devstack/plugin.sh" "$@"
"""

# Options that stand several times keep their order, as in devstack's ini files.
INI = r"""
import sys
verb, path, section, option, *values = sys.argv[1:]
try:
    lines = open(path).read().splitlines()
except FileNotFoundError:
    lines = []
if f"[{section}]" not in lines:
    lines += [f"[{section}]"]
start = lines.index(f"[{section}]") + 1
end = next((i for i in range(start, len(lines)) if lines[i].startswith("[")), len(lines))
body = [line for line in lines[start:end] if line]
if verb == "get":
    print(next((line.split(" = ", 1)[1] for line in body if line.startswith(f"{option} = ")), ""))
else:
    body = [line for line in body if not line.startswith(f"{option} = ")]
    body += [f"{option} = {value}" for value in values]
    open(path, "w").write("\n".join(lines[:start] + body + lines[end:]) + "\n")
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "stand-ins.sh").write_text(STAND_INS)
    (tmp_path / "ini.py").write_text(INI)
    (tmp_path / "nova.conf").write_text(
        "[filter_scheduler]\nenabled_filters = ComputeFilter,ServerGroupFilter\n"
    )
    (tmp_path / "data").mkdir()
    yield tmp_path
    pids = tmp_path / "pids"
    for pid in pids.read_text().split() if pids.exists() else ():
        kill_pid(int(pid))


def stage(site: Path, *words: str, port: int = 0) -> None:
    """Run one stage in a shell of its own, as devstack sources the plugin anew for each."""
    environment = {
        **os.environ,
        "SITE": str(site),
        "REPOSITORY": str(REPOSITORY),
        "PYTHON": sys.executable,
        "NOVA_VMI_ATTEST_TPM_DEVICE": str(site / "no-tpm"),
        "NOVA_VMI_ATTEST_SWTPM_PORT": str(port),
    }
    done = subprocess.run(
        ["bash", str(site / "stand-ins.sh"), *words],
        env=environment, check=False, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_the_stages_leave_a_cloud_that_our_programs_accept(site: Path) -> None:
    port = free_ports(2)
    for words in (
        ("stack", "install"),
        ("stack", "post-config"),
        ("stack", "post-config"),
        ("stack", "extra"),
    ):
        stage(site, *words, port=port)

    conf = configuration.load(["--config-file", str(site / "etc" / "nova-vmi-attest.conf")], "test")
    assert conf.tpm.tcti == f"swtpm:host=127.0.0.1,port={port}"
    for path in (conf.agent.verifier_keys, conf.agent.authority_certificates, conf.verifier.private_key):
        assert Path(path).is_file()
    assert Path(conf.authority.private_key).is_file()
    for directory in (conf.authority.ek_roots, conf.authority.ek_intermediates):
        assert list(Path(directory).iterdir())
    (host,) = HostRegistry(Database(conf.database.connection)).hosts()
    assert host.name == os.uname().nodename

    nova = configparser.ConfigParser(strict=False, interpolation=None)
    nova.read(site / "nova.conf")
    filters = nova["filter_scheduler"]["enabled_filters"].split(",")
    assert filters == ["ComputeFilter", "ServerGroupFilter", "VMIAttestationFilter"]
    assert nova["relying"]["verifier_keys"] == conf.agent.verifier_keys
    available = [
        line for line in (site / "nova.conf").read_text().splitlines() if line.startswith("available")
    ]
    assert [line.rpartition(" ")[2] for line in available] == [
        "nova.scheduler.filters.all_filters",
        "nova_vmi_attest.relying.scheduler_filter.VMIAttestationFilter",
    ]
    started = [line for line in (site / "calls").read_text().splitlines() if line.startswith("run_process")]
    assert [line.split()[1] for line in started] == [
        "vmi-swtpm",
        "vmi-authority",
        "vmi-verifier",
        "vmi-agent",
    ]
    assert started[-1].endswith("user=root")

    stage(site, "unstack")
    stopped = [line for line in (site / "calls").read_text().splitlines() if line.startswith("stop_process")]
    assert [line.split()[1] for line in stopped] == [
        "vmi-agent",
        "vmi-verifier",
        "vmi-authority",
        "vmi-swtpm",
    ]
    stage(site, "clean")
    assert not (site / "etc").exists()
    assert not (site / "data" / "nova-vmi-attest").exists()
