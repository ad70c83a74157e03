# SPDX-License-Identifier: Apache-2.0
"""What the verifiers ask Placement: which resource providers have a trait, and to give or take it.

Source: Placement's API reference, microversion 1.18 (list of providers by required trait).
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from nova_vmi_attest.verifier.openstack import PLACEMENT, BadRequestError, OpenStack, UnavailableError

_VERSION = "1.18"
_MAX_PROVIDERS = 200_000
_MAX_TRAITS = 10_000


@dataclass(frozen=True, slots=True)
class ProviderTraits:
    """The traits of one provider. A write names the ``generation``, so it fails when somebody else wrote."""

    generation: int
    traits: frozenset[str]


class Providers:
    """Every method raises :class:`OpenStackError` when Placement does not answer, or not as it should."""

    def __init__(self, openstack: OpenStack) -> None:
        self._openstack = openstack

    def having(self, trait: str) -> frozenset[uuid.UUID]:
        """The providers that have a trait, in one request. The trait is made when there is none yet."""
        query = {"required": trait}
        try:
            answer = self._call("GET", "/resource_providers", query)
        except BadRequestError:
            self._call("PUT", f"/traits/{trait}")
            answer = self._call("GET", "/resource_providers", query)
        items = answer.get("resource_providers") if isinstance(answer, dict) else None
        if not isinstance(items, list) or len(items) > _MAX_PROVIDERS:
            raise UnavailableError("Placement's answer has no list of providers, or one that is too long")
        return frozenset(_uuid(item) for item in items)

    def traits(self, provider: uuid.UUID) -> ProviderTraits:
        """The traits of one provider.

        :raises NotFoundError: there is no such provider.
        """
        answer = self._call("GET", f"/resource_providers/{provider}/traits")
        traits = answer.get("traits") if isinstance(answer, dict) else None
        generation = answer.get("resource_provider_generation") if isinstance(answer, dict) else None
        if not isinstance(traits, list) or len(traits) > _MAX_TRAITS or type(generation) is not int:
            raise UnavailableError("Placement's answer has no traits with a generation")
        if not all(isinstance(trait, str) for trait in traits):
            raise UnavailableError("a trait in Placement's answer is no text")
        return ProviderTraits(generation, frozenset(traits))

    def replace_traits(self, provider: uuid.UUID, traits: ProviderTraits) -> None:
        """Write all the traits of a provider as they are to be.

        :param traits: with the generation that was read.
        :raises ConflictError: somebody else wrote since.
        """
        body = {"resource_provider_generation": traits.generation, "traits": sorted(traits.traits)}
        self._call("PUT", f"/resource_providers/{provider}/traits", body=body)

    def _call(self, method: str, path: str, query: dict[str, str] | None = None, body: object = None) -> Any:
        return self._openstack.call(PLACEMENT, method, path, _VERSION, query, body)


def _uuid(item: object) -> uuid.UUID:
    value = item.get("uuid") if isinstance(item, dict) else None
    try:
        return uuid.UUID(value if isinstance(value, str) else "")
    except ValueError as error:
        raise UnavailableError("an id in Placement's answer is no UUID") from error
