# SPDX-License-Identifier: Apache-2.0
"""Passes a challenge on to a verifier, which decides whether the host is asked: it limits how often."""

from __future__ import annotations

from http import HTTPStatus

from oslo_log import log

from nova_vmi_attest.api.operations import Call
from nova_vmi_attest.api.problems import Problem
from nova_vmi_attest.messaging import RefusedError

LOG = log.getLogger(__name__)


def challenge(call: Call, host: str, hide: bool) -> str:
    """Have a host challenged with the nonce of the request.

    :param hide: whether the caller must not learn what the verifier says of the host.
    :returns: the nonce that was asked with, in hex.
    :raises Problem: the verifier refused.
    :raises oslo_messaging.MessagingException: no verifier answered.
    """
    try:
        return call.services.verifier.challenge(host, call.body.get("nonce", ""))
    except RefusedError as error:
        LOG.info("challenge of host %s refused: %s", host, error)
        if hide:
            message, remedy = "the server's host cannot be challenged just now", "try again in a moment"
            raise Problem(HTTPStatus.CONFLICT, message, remedy) from error
        raise Problem(HTTPStatus.CONFLICT, error.message, error.remedy) from error
