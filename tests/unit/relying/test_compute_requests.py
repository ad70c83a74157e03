# SPDX-License-Identifier: Apache-2.0
"""We take a path for what Nova's own router takes it for, whatever a client writes."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nova.api import openstack
from nova.api.openstack.compute import routes

from nova_vmi_attest.relying.compute_requests import Kind, is_reserved, recognise, written_keys

SERVER = "0b3f6a1e-5f0b-4c1e-8d0a-0123456789ab"

# The methods of Nova's controllers that take or show the metadata of servers.
KINDS = {
    ("ServersController", "create"): Kind.SERVERS,
    ("ServersController", "index"): Kind.SERVERS,
    ("ServersController", "detail"): Kind.SERVER,
    ("ServersController", "show"): Kind.SERVER,
    ("ServersController", "update"): Kind.SERVER,
    ("ServersController", "delete"): Kind.SERVER,
    ("ServersController", "action"): Kind.ACTION,
    ("ServerMetadataController", "index"): Kind.METADATA,
    ("ServerMetadataController", "create"): Kind.METADATA,
    ("ServerMetadataController", "update_all"): Kind.METADATA,
    ("ServerMetadataController", "show"): Kind.ITEM,
    ("ServerMetadataController", "update"): Kind.ITEM,
    ("ServerMetadataController", "delete"): Kind.ITEM,
}


@cache
def router() -> Any:
    """Nova's mapper with every route of its API, and no controller behind them."""
    mapper = openstack.ProjectMapper()
    for path, methods in routes.ROUTE_LIST:
        if isinstance(methods, dict):
            for method, (controller, action) in methods.items():
                name = controller.args[0].__name__.replace("VolumesBootController", "ServersController")
                mapper.create_route(path, method, name, action)
    mapper.create_regs([])
    return mapper


def routed(method: str, path: str) -> tuple[Kind | None, dict[str, str]]:
    found = router().routematch(url=path, environ={"REQUEST_METHOD": method})
    if not found:
        return None, {}
    return KINDS.get((found[0]["controller"], found[0]["action"])), found[0]


PARTS = st.sampled_from(
    [
        "servers",
        "detail",
        "metadata",
        "action",
        SERVER,
        "os-volumes_boot",
        "0a1b",
        "v2.1",
        "",
        ".",
        "x.json",
        "trust:verdict",
        "\n",
        "metadata\n",
        "trust:verdict\n",
        "%2F",
        "é",
        "os-interface",
        "tags",
        "ips",
        "detail.json",
        "images",
        "flavors",
        "os-hypervisors",
    ]
)
PATHS = st.lists(PARTS | st.text(max_size=4), max_size=6).map(lambda parts: "/" + "/".join(parts))
LIKELY = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["", "/0a1b", "/x"]),
        st.sampled_from(["/servers", "/os-volumes_boot", "/Servers"]),
        st.sampled_from(["", "/", f"/{SERVER}", "/detail", "/x y", "/a\n"]),
        st.sampled_from(["", "/", "/metadata", "/action", "/metadata/"]),
        st.sampled_from(["", "/trust:verdict", "trust:x", "/a/b", "\n", "\n\n"]),
    ),
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(["GET", "POST", "PUT", "DELETE"]), PATHS | LIKELY)
def test_every_path_that_nova_routes_to_servers_is_recognised(method: str, path: str) -> None:
    kind, match = routed(method, path)
    request = recognise(path)
    if kind is not None:
        assert request is not None
        assert request.kind is kind
        if kind is Kind.METADATA:
            assert request.server == match["server_id"]
        if kind is Kind.ITEM:
            assert (request.server, request.key) == (match["server_id"], match["id"])
            above, collection = routed("GET", request.path)
            assert (above, collection["server_id"]) == (Kind.METADATA, match["server_id"])
    elif match:
        assert request is None


@pytest.mark.parametrize(
    "project", ["", "/2f9b0c4d8e7a4b1c9d3e5f6071829304", "/0b3f6a1e-5f0b-4c1e-8d0a-0123456789ab"]
)
def test_the_paths_that_clients_use(project: str) -> None:
    found = [
        recognise(f"{project}/servers{rest}")
        for rest in ("", "/x", "/x/action", "/x/metadata", "/x/metadata/k")
    ]
    assert [item.kind for item in found if item] == list(Kind)
    assert recognise(f"{project}/servers/detail") == recognise("/servers/detail")
    item = found[-1]
    assert item is not None
    assert (item.server, item.key, item.path) == ("x", "k", f"{project}/servers/x/metadata")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/servers/",
        "/servers/x/",
        "/servers/x/metadata/",
        "/servers/x/metadata/k/",
        "/flavors/x",
        "/images/x/metadata",
        "/images/x/metadata/trust:host",
        "/servers/x/tags",
        "/flavors/x/os-extra_specs",
        "/os-aggregates/1/action",
        "/os-volumes_boot/x/metadata",
    ],
)
def test_other_paths_are_none_of_ours(path: str) -> None:
    assert recognise(path) is None


@pytest.mark.parametrize(
    "name",
    [
        "trust:verdict",
        "trust:",
        "trust:x",
        "Trust:Verdict",
        " trust:verdict",
        "trust :verdict",
        "t rust:x",
        "trust:verdict\n",
        "TRUST:x ",
        "\ttrust:x",
    ],
)
def test_look_alikes_are_reserved(name: str) -> None:
    assert is_reserved(name)


@pytest.mark.parametrize(
    "name", ["", "trust", "trust_verdict", "xtrust:verdict", "entrust:x", "x:trust:y", "trusted"]
)
def test_other_names_are_free(name: str) -> None:
    assert not is_reserved(name)


@pytest.mark.parametrize(
    ("path", "body", "keys"),
    [
        ("/servers", {"server": {"metadata": {"a": "1", "b": "2"}}}, ["a", "b"]),
        ("/servers", {"server": {"name": "x"}, "metadata": {"c": "1"}}, []),
        ("/os-volumes_boot", {"server": {"metadata": {"a": "1"}}}, ["a"]),
        ("/servers/x/metadata", {"metadata": {"a": "1"}}, ["a"]),
        ("/servers/x/metadata/k", {"meta": {"a": "1"}}, ["k", "a"]),
        ("/servers/x/metadata/k", {}, ["k"]),
        ("/servers/x/action", {"rebuild": {"metadata": {"a": "1"}}}, ["a"]),
        ("/servers/x/action", {"createImage": {"metadata": {"trust:host": "required"}}}, []),
        ("/servers/x", {"server": {"metadata": {"a": "1"}}}, []),
        ("/servers", {"server": {"metadata": [1]}}, []),
        ("/servers", {"server": None}, []),
        ("/servers", ["server"], []),
        ("/servers/x/action", {"rebuild": "metadata"}, []),
        ("/servers/x/metadata", 1, []),
    ],
)
def test_the_keys_that_a_request_writes(path: str, body: Any, keys: list[str]) -> None:
    request = recognise(path)
    assert request is not None
    assert list(written_keys(request, body)) == keys
