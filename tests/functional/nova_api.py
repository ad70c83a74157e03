# SPDX-License-Identifier: Apache-2.0
"""Nova's own API application with its own ``api-paste.ini``, our filter in it, and servers out of thin air.

Router, validation, policy, controllers and views are Nova's. What they would ask of Keystone, of a database,
of Neutron or of a compute host is answered here.
"""

from __future__ import annotations

import importlib.metadata
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import nova.conf
import oslo_messaging
from nova import availability_zones, context, exception, objects, rpc
from nova.api.openstack.compute.views import servers as views
from nova.compute import api as compute_api
from nova.network import model, neutron, security_group_api
from paste import deploy

PROJECT = "2f9b0c4d8e7a4b1c9d3e5f6071829304"
FILTER = "nova_vmi_attest.relying.server_properties:filter_factory"

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def api_paste() -> str:
    """The file as the nova package ships it."""
    files = importlib.metadata.files("nova") or []
    (found,) = [item for item in files if item.name == "api-paste.ini"]
    return found.read_text()


def with_filter(paste: str) -> str:
    """The file as our documentation tells operators to change it."""
    changed = paste.replace(" osapi_compute_app_v21", " trust osapi_compute_app_v21")
    return f"{changed}\n[filter:trust]\npaste.filter_factory = {FILTER}\n"


def authtoken(global_conf: dict[str, str], **local_conf: str) -> Callable[[Application], Application]:
    """A stand-in for keystonemiddleware: the token is the name of the project."""

    def wrap(application: Application) -> Application:
        def authenticated(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            environ["HTTP_X_USER_ID"] = "someone"
            environ["HTTP_X_PROJECT_ID"] = environ.get("HTTP_X_AUTH_TOKEN", PROJECT)
            environ["HTTP_X_ROLES"] = "member,reader"
            return application(environ, start_response)

        return authenticated

    return wrap


@contextmanager
def bus() -> Iterator[None]:
    """Nova's configuration and a message bus that carries nothing."""
    conf = nova.conf.CONF
    conf([], project="nova", default_config_files=[], default_config_dirs=[])
    # The library of the bus registers its options when it is asked for a transport.
    oslo_messaging.get_rpc_transport(conf, url="fake:///")
    conf.set_override("transport_url", "fake:///")
    objects.register_all()
    rpc.init(conf)
    try:
        yield
    finally:
        rpc.cleanup()
        conf.clear_override("transport_url")


def load(directory: Path, change: Callable[[str], str] = with_filter) -> Application:
    """Make the application as nova-api does."""
    paste = change(api_paste()).replace(
        "keystonemiddleware.auth_token:filter_factory", f"{__name__}:authtoken"
    )
    (directory / "api-paste.ini").write_text(paste)
    application: Application = deploy.loadapp(f"config:{directory / 'api-paste.ini'}", name="osapi_compute")
    return application


def server(identity: uuid.UUID, metadata: dict[str, str], status: str = "active") -> objects.Instance:
    """A server as the database would have it."""
    now = datetime.now(UTC)
    flavor = objects.Flavor(
        name="small", flavorid="1", vcpus=1, memory_mb=64, root_gb=1, ephemeral_gb=0, swap=0, extra_specs={},
        disabled=False, is_public=True, description=None,
    )  # fmt: skip
    cache = objects.InstanceInfoCache(instance_uuid=str(identity), network_info=model.NetworkInfo())
    return objects.Instance(
        context.get_admin_context(), id=1, uuid=str(identity), project_id=PROJECT, user_id="someone",
        display_name="web é", display_description=None, metadata=metadata, system_metadata={}, flavor=flavor,
        info_cache=cache, vm_state=status, task_state=None, power_state=1, host="compute-1", node="compute-1",
        image_ref="", created_at=now, updated_at=now, launched_at=now, terminated_at=None, deleted=False,
        deleted_at=None, config_drive="", key_name=None, access_ip_v4=None, access_ip_v6=None, progress=0,
        auto_disk_config=True, locked=False, locked_by=None, availability_zone="nova", hostname="web",
        reservation_id="r-1", launch_index=0, kernel_id="", ramdisk_id="", root_device_name="/dev/vda",
        user_data=None, tags=objects.TagList(objects=[]), trusted_certs=None, services=objects.ServiceList(),
        security_groups=objects.SecurityGroupList(), hidden=False, default_ephemeral_device=None,
    )  # fmt: skip


class Servers:
    """The servers of one project, with what Nova's compute API does to their metadata."""

    def __init__(self, *servers: objects.Instance) -> None:
        self._servers = {item.uuid: item for item in servers}

    def get(self, _: Any, ctxt: context.RequestContext, identity: str, **options: Any) -> objects.Instance:
        found = self._servers.get(identity)
        if found is None or found.project_id != ctxt.project_id:
            raise exception.InstanceNotFound(instance_id=identity)
        return found

    def get_all(self, _: Any, ctxt: context.RequestContext, **options: Any) -> objects.InstanceList:
        return objects.InstanceList(objects=list(self._servers.values()))

    def metadata(self, _: Any, ctxt: Any, instance: objects.Instance) -> dict[str, str]:
        return dict(instance.metadata)

    def update(
        self, _: Any, ctxt: Any, instance: objects.Instance, metadata: dict[str, str], delete: bool = False
    ) -> dict[str, str]:
        instance.metadata = metadata if delete else {**instance.metadata, **metadata}
        return dict(instance.metadata)

    def delete(self, _: Any, ctxt: Any, instance: objects.Instance, key: str) -> None:
        instance.metadata = {name: value for name, value in instance.metadata.items() if name != key}

    def rebuild(self, _: Any, ctxt: Any, instance: objects.Instance, *given: Any, **changes: Any) -> None:
        instance.metadata = changes.get("metadata", instance.metadata)


@contextmanager
def standing_in(servers: Servers) -> Iterator[None]:
    """Answer what Nova's controllers ask of the rest of a cloud."""
    missing = exception.InstanceGroupNotFound(group_uuid="none")
    api, spec = compute_api.API, objects.RequestSpec
    with ExitStack() as stack:
        for where, name, answer in (
            (api, "get", lambda *a, **k: servers.get(*a, **k)),
            (api, "get_all", lambda *a, **k: servers.get_all(*a, **k)),
            (api, "get_instance_metadata", lambda *a: servers.metadata(*a)),
            (api, "update_instance_metadata", lambda *a, **k: servers.update(*a, **k)),
            (api, "delete_instance_metadata", lambda *a: servers.delete(*a)),
            (api, "rebuild", lambda *a, **k: servers.rebuild(*a, **k)),
            (api, "get_instance_host_status", lambda *a: "UP"),
            (api, "get_instances_host_statuses", lambda *a: {}),
            (objects.BlockDeviceMappingList, "bdms_by_instance_uuid", lambda *a: {}),
            (objects.BlockDeviceMappingList, "get_by_instance_uuid", lambda *a: []),
            (objects.InstanceList, "fill_faults", lambda *a: []),
            (views.ViewBuilder, "_get_instance_bdms_in_multiple_cells", lambda *a: {}),
            (availability_zones, "get_instance_availability_zone", lambda *a: "nova"),
            (security_group_api, "get_instances_security_groups_bindings", lambda *a: {}),
            (neutron.API, "__init__", lambda *a, **k: None),
        ):
            stack.enter_context(mock.patch.object(where, name, answer))
        absent = exception.RequestSpecNotFound(instance_uuid="none")
        stack.enter_context(mock.patch.object(spec, "get_by_instance_uuid", side_effect=absent))
        stack.enter_context(mock.patch.object(spec, "get_by_instance_uuids", return_value=[]))
        stack.enter_context(
            mock.patch.object(objects.InstanceGroup, "get_by_instance_uuid", side_effect=missing)
        )
        yield
