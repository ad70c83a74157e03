# SPDX-License-Identifier: Apache-2.0
"""The devstack plugin, stage by stage, against stand-ins of devstack's own functions and a real software TPM.

What is checked is what the plugin leaves behind: configuration that our programs and Nova accept, a
registered host, the right services on each kind of node, and Nova's files as they were when all is cleaned.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from lab import REPOSITORY
from lab.processes import free_ports
from oslo_config import cfg

from nova_vmi_attest import conf as configuration
from nova_vmi_attest.conf import relying
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.records.registry import HostRegistry
from tests.functional.devstack_stand_ins import DEVSTACK, Node

CONTROLLER = "mysql,rabbit,key,n-api,n-sch,n-cond"
ALL_IN_ONE = CONTROLLER + ",n-cpu"
COMPUTE = "n-cpu"

PIPELINES = (
    "composite:openstack_compute_api_v21",
    "composite:openstack_compute_api_v21_legacy_v2_compatible",
)

NodeMaker = Callable[..., Node]


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[NodeMaker]:
    nodes: list[Node] = []

    def make(services: str, *, ours: bool = False, disabled: str = "", **settings: str) -> Node:
        node = Node(tmp_path / f"node{len(nodes)}", services, free_ports(2), ours, disabled, settings)
        node.prepare()
        nodes.append(node)
        return node

    yield make
    for node in nodes:
        node.end()


def load(node: Node) -> cfg.ConfigOpts:
    return configuration.load(["--config-file", str(node.site / "etc" / "nova-vmi-attest.conf")], "test")


def started(node: Node) -> list[str]:
    return [words[0] for words in node.calls("run_process")]


def nova_option(node: Node, section: str, option: str) -> str:
    (line,) = (line for line in node.lines("nova.conf", section) if line.startswith(f"{option} ="))
    return line.partition(" = ")[2]


def pipelines(node: Node) -> list[list[str]]:
    lines = [node.lines("api-paste.ini", name) for name in PIPELINES]
    return [line.split()[2:] for found in lines for line in found if line.startswith("keystone")]


def test_one_node_gets_a_cloud_that_our_programs_accept_and_keeps_its_keys(make_node: NodeMaker) -> None:
    node = make_node(ALL_IN_ONE, ours=True)
    node.stack()

    conf = load(node)
    assert conf.tpm.tcti == f"swtpm:host=127.0.0.1,port={node.port}"
    for path in (conf.agent.verifier_keys, conf.agent.authority_certificates, conf.verifier.private_key):
        assert Path(path).is_file()
    assert Path(conf.authority.private_key).is_file()
    for directory in (conf.authority.ek_roots, conf.authority.ek_intermediates):
        assert list(Path(directory).iterdir())
    assert (node.site / "etc" / "nova-vmi-attest.conf").stat().st_mode & 0o777 == 0o600
    assert "username = nova-vmi-attest" in node.lines("etc/nova-vmi-attest.conf", "openstack")
    (host,) = HostRegistry(Database(conf.database.connection)).hosts()
    assert host.name == os.uname().nodename

    assert started(node) == ["vmi-swtpm", "vmi-authority", "vmi-verifier", "vmi-api", "vmi-agent"]
    users = {words[0]: words[1] for words in node.calls("run_process")}
    assert users.pop("vmi-agent") == "user=root"
    assert set(users.values()) == {"user=stack"}

    kept = ("etc/verifier.key", "etc/authority.key", "etc/authority.pem", "data/nova-vmi-attest/ek.pem")
    before = {name: node.text(name) for name in kept}
    assert all(before.values())
    node.stage("unstack")
    node.stack()
    assert {name: node.text(name) for name in kept} == before
    assert len(HostRegistry(Database(conf.database.connection)).hosts()) == 1


def test_the_api_stands_in_the_catalogue_and_behind_apache(make_node: NodeMaker) -> None:
    node = make_node(ALL_IN_ONE)
    node.stack()
    assert node.calls("create_service_user") == [["nova-vmi-attest", "admin"]]
    assert node.calls("get_or_create_service") == [["nova-vmi-attest", "attestation"]]
    url = "http://192.0.2.1/attestation"
    assert node.calls("get_or_create_endpoint") == [["attestation", "RegionOne", url]]
    assert node.calls("wait_for_service") == [[f"{url}/"]]
    assert node.text("apache-vmi-api.conf") == "ProxyPass /attestation\n"
    (option,) = node.lines("etc/uwsgi.ini", "uwsgi")
    assert option == "module = nova_vmi_attest.wsgi.api:application"
    assert "username = nova-vmi-attest" in node.lines("etc/nova-vmi-attest.conf", "keystone_authtoken")


def test_nova_gets_filter_weigher_driver_and_paste_filter(make_node: NodeMaker) -> None:
    node = make_node(ALL_IN_ONE, NOVA_VMI_ATTEST_TRUST_HOST="preferred")
    node.stack()
    scheduler = node.lines("nova.conf", "filter_scheduler")
    assert scheduler == {
        "enabled_filters = ComputeFilter,ServerGroupFilter,VMIAttestationFilter",
        "available_filters = nova.scheduler.filters.all_filters",
        "available_filters = nova_vmi_attest.relying.scheduler_filter.VMIAttestationFilter",
        "weight_classes = nova.scheduler.weights.all_weighers,"
        "nova_vmi_attest.relying.scheduler_weigher.VMIAttestationWeigher",
    }
    drivers = node.lines("nova.conf", "oslo_messaging_notifications")
    assert drivers == {"driver = messagingv2", "driver = vmi_attest"}
    assert [pipeline[-2:] for pipeline in pipelines(node)] == [["trust", "osapi_compute_app_v21"]] * 2
    assert "trust" not in " ".join(node.lines("api-paste.ini", "pipeline:meta"))

    nova = cfg.ConfigOpts()
    nova.register_opts(relying.OPTIONS, group="relying")
    nova([], default_config_files=[str(node.site / "nova.conf")])
    assert nova.relying.verifier_keys == load(node).agent.verifier_keys
    assert nova.relying.trust_host == "preferred"
    assert nova.relying.trust_guest == "required"
    assert nova.relying.hint_socket == load(node).agent.hint_socket


def test_what_nova_is_told_to_load_exists(make_node: NodeMaker) -> None:
    node = make_node(ALL_IN_ONE)
    node.stage("stack", "post-config")
    (factory,) = node.lines("api-paste.ini", "filter:trust")
    names = [
        nova_option(node, "filter_scheduler", "weight_classes").rpartition(",")[2],
        factory.rpartition(" ")[2].replace(":", "."),
    ]
    for line in node.lines("nova.conf", "filter_scheduler"):
        if line.startswith("available_filters") and "vmi" in line:
            names.append(line.rpartition(" ")[2])
    assert len(names) == 3
    (application,) = node.lines("etc/uwsgi.ini", "uwsgi")
    assert importlib.util.find_spec(application.rpartition(" ")[2].partition(":")[0]) is not None
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
    (driver,) = importlib.metadata.entry_points(group="oslo.messaging.notify.drivers", name="vmi_attest")
    assert driver.load() is not None


def test_stages_that_run_twice_change_nothing(make_node: NodeMaker) -> None:
    node = make_node(ALL_IN_ONE)
    node.stage("stack", "post-config")
    names = ("nova.conf", "api-paste.ini", "etc/verifier.key", "etc/authority.pem", "etc/verifier.jwks")
    before = {name: sorted(node.text(name).splitlines()) for name in names}
    node.stage("stack", "post-config")
    assert {name: sorted(node.text(name).splitlines()) for name in names} == before


def test_a_compute_node_gets_the_agent_alone(make_node: NodeMaker) -> None:
    controller, node = make_node(ALL_IN_ONE), make_node(COMPUTE, ours=True)
    controller.stack()
    shutil.copytree(controller.site / "data" / "CA", node.site / "data" / "CA")
    node.stack()

    assert started(node) == ["vmi-swtpm", "vmi-agent"]
    assert node.calls("create_service_user") == []
    conf = load(node)
    for name in ("verifier.jwks", "authority.pem"):
        assert node.text(f"etc/{name}") == controller.text(f"etc/{name}")
    assert not list((node.site / "etc").glob("*.key"))
    for section in ("database", "openstack", "keystone_authtoken", "authority", "verifier"):
        assert node.lines("etc/nova-vmi-attest.conf", section) == set()
    assert "nova-vmi-attest" in node.text("etc/nova-vmi-attest.conf")
    certificate = f"{node.site}/data/nova-vmi-attest/ek.pem"
    (enrolment,) = node.calls("openstack")
    assert enrolment[2:] == ["trust", "host", "enrol", os.uname().nodename, certificate]

    # The authority of the controller trusts whoever made the TPM of this node.
    (maker,) = Path(load(controller).authority.ek_intermediates).iterdir()
    issuer = x509.load_pem_x509_certificate(maker.read_bytes())
    x509.load_pem_x509_certificate(Path(certificate).read_bytes()).verify_directly_issued_by(issuer)

    assert conf.agent.hint_socket in node.text("nova.conf")
    assert "driver = vmi_attest" in node.lines("nova.conf", "oslo_messaging_notifications")
    assert "VMIAttestation" not in node.text("nova.conf")
    assert all("trust" not in pipeline for pipeline in pipelines(node))


def test_a_compute_node_without_keys_says_what_to_copy(make_node: NodeMaker) -> None:
    node = make_node(COMPUTE)
    done = node.run("stack", "post-config")
    assert done.returncode != 0
    assert f"copy {node.site}/data/CA/nova-vmi-attest from the controller" in done.stdout


def test_a_controller_without_hypervisor_gets_no_agent(make_node: NodeMaker) -> None:
    node = make_node(CONTROLLER)
    node.stack()
    assert started(node) == ["vmi-authority", "vmi-verifier", "vmi-api"]
    assert node.lines("etc/nova-vmi-attest.conf", "agent") == set()
    assert node.lines("nova.conf", "oslo_messaging_notifications") == {"driver = messagingv2"}
    assert list((node.site / "data" / "CA" / "nova-vmi-attest").iterdir())


def test_what_local_conf_disables_stays_off(make_node: NodeMaker) -> None:
    node = make_node(ALL_IN_ONE, disabled="vmi-api,vmi-agent")
    node.stack()
    assert started(node) == ["vmi-authority", "vmi-verifier"]
    assert not (node.site / "etc" / "uwsgi.ini").exists()
    assert node.lines("etc/nova-vmi-attest.conf", "keystone_authtoken") == set()
    node.stage("clean")
    assert node.calls("disable_apache_site") == []


def test_a_chip_needs_no_software_tpm(make_node: NodeMaker) -> None:
    node = make_node(ALL_IN_ONE, NOVA_VMI_ATTEST_TPM_DEVICE="/dev/null")
    node.stage("stack", "post-config")
    assert load(node).tpm.tcti == "device:/dev/null"
    assert "vmi-swtpm" not in node.text("settings")


@pytest.mark.parametrize(("chosen", "used"), [("", "both"), ("versioned", "versioned")])
def test_nova_notifies_in_versions(make_node: NodeMaker, chosen: str, used: str) -> None:
    node = make_node(ALL_IN_ONE, **({"NOVA_NOTIFICATION_FORMAT": chosen} if chosen else {}))
    node.stage()
    assert node.text("settings").split()[0] == used
    assert node.calls("define_plugin") == [["nova-vmi-attest"]]


def test_guest_memory_goes_into_files_when_asked(make_node: NodeMaker) -> None:
    node = make_node(ALL_IN_ONE, NOVA_VMI_ATTEST_FILE_BACKED_MEMORY="2048")
    qemu, nova = node.text("qemu.conf"), node.text("nova.conf")
    for _ in range(2):
        node.stage("stack", "post-config")
    assert node.lines("nova.conf", "libvirt") == {"file_backed_memory = 2048"}
    default = node.lines("nova.conf", "DEFAULT")
    assert {"ram_allocation_ratio = 1.0", "reserved_host_memory_mb = 0"} <= default
    assert node.text("qemu.conf").count("memory_backing_dir") == 1
    assert node.calls("restart_service") == [["libvirtd"]] * 2
    node.stage("clean")
    assert node.text("qemu.conf") == qemu
    assert node.lines("nova.conf", "DEFAULT") == {"my_ip = 192.0.2.1"}
    assert "file_backed" not in nova


def test_an_image_that_comes_to_be_trusted_is_made_once(make_node: NodeMaker) -> None:
    node = make_node(ALL_IN_ONE + ",g-api,tempest", NOVA_VMI_ATTEST_IMAGE="True")
    node.stack()
    uploads = {words[4]: words[5:] for words in node.calls("openstack") if "create" in words}
    assert list(uploads) == ["attested-kernel", "attested-ramdisk", "attested"]
    assert uploads["attested-kernel"][-5].endswith("/boot/vmlinuz-6.1.0-9-cloud-amd64")
    for kind in ("kernel", "ramdisk"):
        assert f"{kind}_id=id-of-attested-{kind}" in uploads["attested"]
    assert ["reference", "import"] in [words[:2] for words in node.calls("manage")]
    ramdisk = node.site / "data" / "nova-vmi-attest" / "guest" / "initramfs.gz"
    listing = subprocess.run(
        ["cpio", "-t"], input=gzip.decompress(ramdisk.read_bytes()), capture_output=True, check=True
    )
    assert {"init", "bin/busybox", "proc"} <= set(listing.stdout.decode().split())
    assert node.lines("tempest.conf", "compute") == {"image_ref = image-id", "image_ref_alt = image-id"}

    node.stage("stack", "extra")
    assert len([words for words in node.calls("openstack") if "create" in words]) == 3


def test_unstack_stops_in_the_reverse_order(make_node: NodeMaker) -> None:
    node = make_node(ALL_IN_ONE)
    node.stack()
    node.stage("unstack")
    stopped = [words[0] for words in node.calls("stop_process")]
    assert stopped == ["vmi-agent", "vmi-api", "vmi-verifier", "vmi-authority", "vmi-swtpm"]


def test_clean_leaves_nova_as_it_was_and_nothing_of_ours(make_node: NodeMaker) -> None:
    node = make_node(ALL_IN_ONE, NOVA_VMI_ATTEST_TRUST_GUEST="preferred")
    sections = ("DEFAULT", "filter_scheduler", "oslo_messaging_notifications")
    nova = {name: node.lines("nova.conf", name) for name in sections}
    paste = sorted(node.text("api-paste.ini").split())
    node.stack()
    node.stage("unstack")
    node.stage("clean")
    assert {name: node.lines("nova.conf", name) for name in sections} == nova
    assert "relying" not in node.text("nova.conf")
    assert sorted(node.text("api-paste.ini").split()) == paste
    assert sorted(path.name for path in (node.site / "data").rglob("*")) == ["CA"]
    for name in ("etc", "run", "apache-vmi-api.conf"):
        assert not (node.site / name).exists()
    assert node.calls("disable_apache_site") == [["vmi-api"]]


def test_clean_needs_none_of_the_files(make_node: NodeMaker) -> None:
    node = make_node(ALL_IN_ONE)
    for name in ("nova.conf", "api-paste.ini", "qemu.conf"):
        (node.site / name).unlink()
    node.stage("clean")
    assert not (node.site / "nova.conf").exists()


def test_clean_keeps_what_others_put_into_the_same_options(make_node: NodeMaker) -> None:
    node = make_node(ALL_IN_ONE)
    (node.site / "nova.conf").write_text(
        "[filter_scheduler]\n"
        "enabled_filters = A,Mine\n"
        "available_filters = nova.scheduler.filters.all_filters\n"
        "available_filters = mine.Mine\n"
        "weight_classes = mine.Weigher\n"
        "[oslo_messaging_notifications]\n"
        "driver = log\n"
        "driver = messagingv2\n"
    )
    before = [node.lines("nova.conf", name) for name in ("filter_scheduler", "oslo_messaging_notifications")]
    node.stage("stack", "post-config")
    assert nova_option(node, "filter_scheduler", "enabled_filters") == "A,Mine,VMIAttestationFilter"
    assert "driver = log" in node.lines("nova.conf", "oslo_messaging_notifications")
    node.stage("clean")
    after = [node.lines("nova.conf", name) for name in ("filter_scheduler", "oslo_messaging_notifications")]
    assert after == before


SCRIPTS = sorted(path for path in DEVSTACK.rglob("*") if path.is_file() and path.suffix != ".txt")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(DEVSTACK)))
def test_scripts_are_clean(script: Path) -> None:
    programs = Path(sys.executable).parent
    for command in (
        [programs / "shellcheck", "--external-sources", f"--source-path={REPOSITORY}", script],
        [programs / "bashate", "--error", "*", "--max-line-length", "120", script],
    ):
        done = subprocess.run(command, check=False, text=True, capture_output=True)
        assert (done.returncode, done.stdout + done.stderr) == (0, ""), done.stdout
