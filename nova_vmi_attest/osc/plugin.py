# SPDX-License-Identifier: Apache-2.0
"""How python-openstackclient finds the commands: the names that its plugin interface looks up."""

from __future__ import annotations

import argparse
from typing import Any

from osc_lib import utils

from nova_vmi_attest.osc.client import AttestationClient

DEFAULT_API_VERSION = "1"
API_NAME = "attestation"
API_VERSION_OPTION = "os_attestation_api_version"
API_VERSIONS = {"1": "nova_vmi_attest.osc.client.AttestationClient"}


def make_client(instance: Any) -> AttestationClient:
    """The client of one run of the command; ``instance`` is osc-lib's client manager."""
    return AttestationClient(instance.session, region_name=instance.region_name, interface=instance.interface)


def build_option_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the option that every OpenStack plugin has."""
    parser.add_argument(
        "--os-attestation-api-version",
        metavar="<attestation-api-version>",
        default=utils.env("OS_ATTESTATION_API_VERSION", default=DEFAULT_API_VERSION),
        choices=sorted(API_VERSIONS),
        help=f"Attestation API version, default={DEFAULT_API_VERSION} (Env: OS_ATTESTATION_API_VERSION)",
    )
    return parser
