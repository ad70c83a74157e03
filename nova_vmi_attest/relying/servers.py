# SPDX-License-Identifier: Apache-2.0
"""What Nova's databases say of the server in a request: why it is placed, and its image's properties.

A request itself tells neither. It carries only the image properties that Nova knows, and its hints, among
them the one by which Nova marks a rebuild, are a tenant's to set. Nova keeps all properties of the image with
the server: those of the volume's image if it boots from one, and even if the image has been deleted since.

One look-up in the API database and one in the server's cell, for each request and never for each host.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import nova.context
import nova.exception
import oslo_db.exception
from nova import objects
from nova.compute import task_states, vm_states
from oslo_log import log

from nova_vmi_attest.relying.demand import GUEST, HOST, NEIGHBOURS, Operation, Server

LOG = log.getLogger(__name__)

# No such record, a database that refuses, and one that is not configured.
_UNREADABLE = (
    nova.exception.NovaException,
    oslo_db.exception.DBError,
    oslo_db.exception.CantStartEngineError,
)

# Nova keeps the properties of an image in the system metadata of a server, under this prefix.
_PREFIX = "image_"

_OPERATIONS = {
    task_states.UNSHELVING: Operation.UNSHELVE,
    task_states.RESIZE_PREP: Operation.MIGRATE,
    task_states.MIGRATING: Operation.LIVE_MIGRATE,
}


def look_up(spec: Any) -> Server:
    """The server that a request is for.

    When Nova cannot say, its operation is ``OTHER``, it counts as running, and its properties are ``None``.

    :param spec: Nova's ``RequestSpec``.
    """
    server = uuid.UUID(spec.instance_uuid) if "instance_uuid" in spec and spec.instance_uuid else None
    try:
        if server is None:
            raise nova.exception.InstanceNotFound(instance_id=None)
        return _look_up(server, spec)
    except _UNREADABLE as error:
        LOG.warning("Nova's record of server %s cannot be read, so everything is required: %s", server, error)
        return Server(server, Operation.OTHER, running=True, properties=None)


def _look_up(server: uuid.UUID, spec: Any) -> Server:
    # Other tenants' servers move as well: what is read here is for the scheduler, not for who asked.
    context = nova.context.get_admin_context()
    cell = objects.InstanceMapping.get_by_instance_uuid(context, str(server)).cell_mapping
    if cell is None:
        built = objects.BuildRequest.get_by_instance_uuid(context, str(server)).instance
        return Server(server, Operation.BUILD, running=False, properties=_properties(built))
    with nova.context.target_cell(context, cell) as in_cell:
        instance = objects.Instance.get_by_uuid(in_cell, str(server), expected_attrs=["system_metadata"])
    operation = _operation(instance, spec)
    running = operation in (Operation.MIGRATE, Operation.LIVE_MIGRATE, Operation.OTHER)
    return Server(
        server,
        operation,
        running=running and instance.vm_state != vm_states.STOPPED,
        properties=_properties(instance),
    )


def _operation(instance: Any, spec: Any) -> Operation:
    if instance.task_state != task_states.REBUILDING:
        return _OPERATIONS.get(instance.task_state, Operation.OTHER)
    # Nova rebuilds on the host where the server is, and evacuates to any other one.
    ignored = spec.ignore_hosts if "ignore_hosts" in spec else None
    return Operation.EVACUATE if instance.host in (ignored or ()) else Operation.REBUILD


def _properties(instance: Any) -> Mapping[str, str] | None:
    if "system_metadata" not in instance:
        return None
    names = (HOST, GUEST, NEIGHBOURS)
    kept = instance.system_metadata
    return {name: kept[_PREFIX + name] for name in names if _PREFIX + name in kept}
