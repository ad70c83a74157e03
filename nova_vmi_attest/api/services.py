# SPDX-License-Identifier: Apache-2.0
"""What the API works with: the database, the bus and the references, each made when a request first needs it.

A web server forks after it has loaded the application, and connections do not survive that; so nothing here
is opened before the first request of a process.
"""

from __future__ import annotations

import threading

from oslo_config import cfg
from oslo_policy import policy

from nova_vmi_attest import messaging
from nova_vmi_attest.api.policy import make_enforcer
from nova_vmi_attest.db.session import Database
from nova_vmi_attest.references.store import ReferenceStore


class Services:
    """Safe for several threads."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self.conf = conf
        self.enforcer: policy.Enforcer = make_enforcer(conf)
        self.references = ReferenceStore(conf.references.path)
        self.uploads = threading.BoundedSemaphore(conf.api.max_uploads)
        self._lock = threading.Lock()
        self._database: Database | None = None
        self._verifier: messaging.VerifierClient | None = None

    @property
    def database(self) -> Database:
        """The database, once its schema was seen to be the one that this version needs.

        :raises DatabaseError: it is not, or the database does not answer.
        """
        with self._lock:
            if self._database is None:
                database = Database(self.conf.database.connection)
                database.require_current()
                self._database = database
            return self._database

    @property
    def verifier(self) -> messaging.VerifierClient:
        """The verifiers, over the bus. Whether one is there shows when it is asked."""
        with self._lock:
            if self._verifier is None:
                transport = messaging.get_transport(self.conf)
                self._verifier = messaging.VerifierClient(transport, self.conf.api.verifier_timeout)
            return self._verifier
