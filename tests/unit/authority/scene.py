# SPDX-License-Identifier: Apache-2.0
"""An authority in process, with a database of its own and a clock that tests can move."""

from __future__ import annotations

import base64
import datetime
from pathlib import Path

from sqlalchemy import select

from nova_vmi_attest.authority.ca import CertificateAuthority, create_ca
from nova_vmi_attest.authority.issuance import Endorsers, Issuance
from nova_vmi_attest.authority.service import AuthorityEndpoint
from nova_vmi_attest.db.models import AuditRecord
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.records.registry import HostRegistry
from tests.unit.tpm.maker import Chip, Maker

LIFETIME = datetime.timedelta(hours=24)


class Scene:
    """The authority, one TPM maker, and what the operator registered."""

    def __init__(self, directory: Path, *, trust_on_first_use: bool = False) -> None:
        self.now = datetime.datetime.now(datetime.UTC).timestamp()
        self.maker = Maker()
        create_ca(directory / "ca.key", directory / "ca.pem")
        self.ca = CertificateAuthority.load(directory / "ca.key", directory / "ca.pem")
        self.database = Database(f"sqlite:///{directory / 'attest.sqlite'}")
        self.database.upgrade()
        self.registry = HostRegistry(self.database, lambda: self.now)
        self.issuance = self.another_process(trust_on_first_use)
        self.endpoint = AuthorityEndpoint(self.issuance)

    def another_process(self, trust_on_first_use: bool = False) -> Issuance:
        endorsers = Endorsers([self.maker.root], [self.maker.intermediate])
        return Issuance(self.database, self.ca, endorsers, LIFETIME, trust_on_first_use, lambda: self.now)

    def chip(self, host: str = "") -> Chip:
        """A new chip, registered as ``host``'s when one is named."""
        chip = Chip(self.maker)
        if host:
            self.registry.register(host, chip.ek_certificate())
        return chip

    def audit(self) -> list[tuple[str, str, str]]:
        with self.database.reader() as session:
            rows = session.scalars(select(AuditRecord).order_by(AuditRecord.id))
            return [(row.action, row.host_name, row.outcome) for row in rows]

    def last_detail(self) -> str:
        with self.database.reader() as session:
            return session.scalars(select(AuditRecord).order_by(AuditRecord.id.desc())).first().detail  # type: ignore[union-attr]


def request(chip: Chip, host: str) -> dict[str, str]:
    octets = (chip.ek_certificate(), chip.ek_public(), chip.ak_public())
    names = ("ek_certificate", "ek_public", "ak_public")
    return {"host": host} | {
        name: base64.b64encode(data).decode() for name, data in zip(names, octets, strict=True)
    }
