# SPDX-License-Identifier: Apache-2.0
"""Responds to changed verdicts: confirms each, keeps to the limit, acts, and records what came of it.

Any number of verifiers run this on one database. A change from before the first of them is history. What is
done is done at least once: after the death of a verifier in the middle of a response, another one repeats it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from oslo_config import cfg
from oslo_log import log

from nova_vmi_attest.db.session import Database
from nova_vmi_attest.errors import AttestError
from nova_vmi_attest.evidence.result import Verdict
from nova_vmi_attest.records.changes import Changes, NumberedChange
from nova_vmi_attest.records.overrides import Overrides
from nova_vmi_attest.records.responses import Outcome, StoredResponse
from nova_vmi_attest.verifier.responses.base import GUEST, LimitReached, Moot, ResponseError
from nova_vmi_attest.verifier.responses.plugins import Plugins
from nova_vmi_attest.verifier.responses.queue import Limits, Queue

LOG = log.getLogger(__name__)

# After how many times the time that a response may take its verifier is taken for dead.
_DEAD_AFTER = 3


class Reports(Protocol):
    """Where outcomes are announced; see :class:`nova_vmi_attest.verifier.notifications.Notifier`."""

    def responded(self, item: NumberedChange, response: str, outcome: str, detail: str) -> None:
        """Announce what a response did, or why it did not."""


class _ExpiredError(AttestError):
    """A response was tried for as long as it may be."""


class Runner:
    """One verifier's part in the responses.

    :param is_settled: whether this verifier has run for long enough to take the silence of a host for one.
    :param clock: seconds since 1970.
    """

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        database: Database,
        plugins: Plugins,
        reports: Reports,
        is_settled: Callable[[], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        options = conf.responses
        self._options = options
        self._plugins = plugins
        self._reports = reports
        self._is_settled = is_settled
        self._clock = clock
        self._changes = Changes(database)
        self._overrides = Overrides(database)
        limits = Limits(options.limit, options.window, _DEAD_AFTER * options.timeout)
        self._queue = Queue(database, limits, conf.verifier.history_days)

    def run_once(self, is_stopped: Callable[[], bool] = lambda: False) -> None:
        """Look at every new change and at every response that is due.

        :param is_stopped: asked in between; what is left then is for the next run, or for another verifier.
        :raises DatabaseError: when the database refuses.
        """
        while not is_stopped() and self._queue.collect(self._responses_to, self._now()):
            pass
        for item in self._queue.due(self._now()):
            if is_stopped():
                return
            self._handle(item)

    def _responses_to(self, item: NumberedChange) -> tuple[str, ...]:
        names = self._plugins.names_for(item)
        if names and not self._options.first_verdicts and self._changes.is_first(item):
            LOG.info("no response to the first verdict on %s: %s", item.change.subject, item.change.verdict)
            return ()
        return names

    def _handle(self, item: StoredResponse) -> None:
        change = self._changes.get(item.change)
        if change is None:
            self._queue.finish(item, Outcome.MOOT, "the change is no longer in the history", self._now())
            return
        try:
            self._examine(item, change)
        except _ExpiredError as error:
            self._end(item, change, Outcome.FAILED, error.message)
        except Moot as error:
            self._end(item, change, Outcome.MOOT, error.message)
        except ResponseError as error:
            self._queue.finish(item, Outcome.PENDING, error.message, self._now())
        else:
            if self._plugins.has(item.response):
                self._take(item, change)

    def _examine(self, item: StoredResponse, change: NumberedChange) -> None:
        """Whether the verdict stands, and has stood for long enough.

        :raises ResponseError: not yet. :class:`Moot`: no more. :class:`_ExpiredError`: it took too long.
        """
        now, made = self._now(), change.change
        later = self._changes.later(change)
        if later is not None:
            raise Moot(f"the verdict changed to {later.change.verdict} meanwhile")
        if abs(now - made.at) > self._options.patience:
            raise _ExpiredError(
                f"given up after {self._options.patience} s; {item.detail or 'it was not tried'}"
            )
        if made.kind != GUEST and (override := self._overrides.active(made.subject, now)):
            raise Moot(f"{override.made_by} overrides the verdict: {override.reason}")
        if made.verdict is Verdict.STALE:
            confirmed = now - made.at >= self._options.confirm_after
        else:
            confirmed = self._is_confirmed(change, now)
        if not confirmed:
            raise ResponseError("the verdict is not confirmed yet")

    def _is_confirmed(self, change: NumberedChange, now: int) -> bool:
        """Whether a later result says the same. A host that falls silent after a bad verdict has no later
        one, and does not get around the response by that.
        """
        newest = self._changes.standing(change)
        if newest is None:
            raise Moot("the host shows it no more")
        if newest.issued - change.change.at >= self._options.confirm_after:
            return True
        return newest.expires <= now and self._is_settled()

    def _take(self, item: StoredResponse, change: NumberedChange) -> None:
        now = self._now()
        taken = self._queue.take(item, now)
        if taken is Outcome.LIMITED:
            detail = f"more than {self._options.limit} within {self._options.window} s"
            self._limited(item, change, detail)
        if taken is not Outcome.ACTING:
            return
        mine = replace(item, outcome=Outcome.ACTING, at=now)
        try:
            detail = self._plugins.call(item.response, change)
        except Moot as error:
            self._end(mine, change, Outcome.MOOT, error.message)
        except LimitReached as error:
            if self._queue.finish(mine, Outcome.LIMITED, error.message, self._now()):
                self._limited(mine, change, str(error))
        except ResponseError as error:
            LOG.warning("%s on %s failed for now: %s", item.response, item.subject, error)
            self._queue.finish(mine, Outcome.PENDING, error.message, self._now())
        else:
            self._end(mine, change, Outcome.DONE, detail)

    def _end(self, item: StoredResponse, change: NumberedChange, outcome: Outcome, detail: str) -> None:
        if not self._queue.finish(item, outcome, detail, self._now()):
            return
        if outcome is Outcome.MOOT:
            LOG.info("%s on %s is not needed: %s", item.response, item.subject, detail)
            return
        level = log.WARNING if outcome is Outcome.DONE else log.ERROR
        LOG.log(level, "%s on %s is %s: %s", item.response, item.subject, outcome, detail)
        self._reports.responded(change, item.response, outcome.value, detail)

    def _limited(self, item: StoredResponse, change: NumberedChange, detail: str) -> None:
        """Say once in a window that the limit is reached; every row says it for itself."""
        if not self._queue.is_first_limited(item, self._now()):
            return
        LOG.error(
            "%s is not done to %s and others, the limit is reached: %s", item.response, item.subject, detail
        )
        self._reports.responded(change, item.response, "limit_reached", detail)

    def _now(self) -> int:
        return int(self._clock())
