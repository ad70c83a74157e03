# SPDX-License-Identifier: Apache-2.0
"""What a tenant sees of trust in Nova itself, and that nothing of it is in Nova."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy
from lab.cloud.cloud import Cloud
from lab.cloud.waiting import until
from openstack import exceptions
from openstack.compute.v2.server import Server

from tests.openstack.conftest import Boot

VERDICT_TIMEOUT = 60


@pytest.fixture
def server(boot: Boot) -> Server:
    return boot("shown", host="compute-1", up=False, metadata={"role": "web"})


@pytest.fixture
def stored(cloud: Cloud) -> Iterator[sqlalchemy.Connection]:
    """Nova's database."""
    engine = sqlalchemy.create_engine(cloud.layout.database("nova"))
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def shown(cloud: Cloud, server: Server) -> dict[str, str]:
    metadata: dict[str, str] = cloud.user("alpha-reader").compute.get_server(server.id).metadata
    return metadata


def wait_shown(cloud: Cloud, server: Server, verdict: str, why: str = "") -> dict[str, str]:
    def there() -> dict[str, str] | None:
        seen = shown(cloud, server)
        fits = seen["trust:verdict"] == verdict and why in seen.get("trust:reason", "")
        return seen if fits else None

    found = until(
        there, f"the verdict {verdict} to be shown", VERDICT_TIMEOUT, lambda: str(shown(cloud, server))
    )
    assert found is not None
    return found


def test_the_verdict_follows_the_server(cloud: Cloud, server: Server) -> None:
    first = shown(cloud, server)
    assert first["trust:verdict"] in ("unknown", "trusted")
    assert (first["trust:verdict"] == "unknown") == ("trust:reason" in first)
    trusted = wait_shown(cloud, server, "trusted")
    assert trusted["role"] == "web"
    assert trusted["trust:host_verdict"] == "trusted"
    assert trusted["trust:checked_at"] < trusted["trust:valid_until"]
    assert trusted["trust:kernel"]
    assert all(len(value) <= 255 and "compute-1" not in value for value in trusted.values())
    cloud.admin.compute.stop_server(server.id)
    cloud.wait(server, "SHUTOFF")
    wait_shown(cloud, server, "unknown", "it is not running")
    cloud.admin.compute.start_server(server.id)
    cloud.wait(server)
    wait_shown(cloud, server, "trusted")


def test_lists_and_single_items(cloud: Cloud, server: Server) -> None:
    wait_shown(cloud, server, "trusted")
    compute = cloud.user("alpha").compute
    (listed,) = [item for item in compute.servers(details=True) if item.id == server.id]
    assert listed.metadata["trust:verdict"] == "trusted"
    assert compute.get(f"/servers/{server.id}/metadata/trust:verdict").json() == {
        "meta": {"trust:verdict": "trusted"}
    }
    assert compute.get(f"/servers/{server.id}/metadata/trust:nothing").status_code == 404
    whole = compute.get(f"/servers/{server.id}/metadata").json()["metadata"]
    assert (whole["role"], whole["trust:verdict"]) == ("web", "trusted")
    for path in ("", "/metadata", "/metadata/trust:verdict"):
        assert cloud.user("beta").compute.get(f"/servers/{server.id}{path}").status_code == 404


def test_nobody_writes_the_prefix(cloud: Cloud, server: Server, stored: sqlalchemy.Connection) -> None:
    compute = cloud.user("alpha").compute
    with pytest.raises(exceptions.ForbiddenException, match="trust:"):
        compute.set_server_metadata(server.id, **{"trust:verdict": "trusted"})
    with pytest.raises(exceptions.ForbiddenException, match="trust:"):
        compute.delete_server_metadata(server.id, ["trust:verdict"])
    with pytest.raises(exceptions.ForbiddenException, match="trust:"):
        compute.create_server(
            name="forged", image_id=server.image.id, flavor_id="x", networks="none", metadata={"trust:x": "1"}
        )
    compute.set_server_metadata(server.id, note="kept")
    assert keys(stored, server) == {"role", "note"}
    compute.delete_server_metadata(server.id, ["note"])
    assert shown(cloud, server)["role"] == "web"
    assert keys(stored, server) == {"role"}


def test_a_forgery_from_before_is_not_shown(
    cloud: Cloud, server: Server, stored: sqlalchemy.Connection
) -> None:
    forged = sqlalchemy.text(
        "INSERT INTO instance_metadata (instance_uuid, `key`, value, deleted)"
        " VALUES (:server, :key, 'forged', 0)"
    )
    for key in ("trust:verdict", "Trust:Verdict", "trust:note"):
        stored.execute(forged, {"server": server.id, "key": key})
    stored.commit()
    seen = shown(cloud, server)
    assert "forged" not in seen.values()
    assert seen["trust:verdict"] in ("unknown", "trusted")
    for key in ("trust:note", "Trust:Verdict"):
        assert cloud.user("alpha").compute.get(f"/servers/{server.id}/metadata/{key}").status_code == 404


def keys(stored: sqlalchemy.Connection, server: Server) -> set[str]:
    """The metadata that Nova has of a server."""
    stored.rollback()
    query = sqlalchemy.text(
        "SELECT `key` FROM instance_metadata WHERE instance_uuid = :server AND deleted = 0"
    )
    return set(stored.execute(query, {"server": server.id}).scalars())
