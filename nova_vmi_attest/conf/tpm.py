# SPDX-License-Identifier: Apache-2.0
"""Options of the host's TPM."""

from __future__ import annotations

from oslo_config import cfg, types

GROUP = cfg.OptGroup("tpm", title="The TPM of each compute host")

OPTIONS = [
    cfg.StrOpt(
        "tcti",
        default="device:/dev/tpmrm0",
        help="""
How the TPM is reached, in the notation of tpm2-tss.

The default goes through the kernel's resource manager, which lets other programs use the TPM too; keep it on
a host with a chip. A software TPM for tests is ``swtpm:path=<socket>`` or ``swtpm:host=127.0.0.1,port=2321``.
The agent's user needs read and write access to the device (group ``tss`` on most systems).
""",
    ),
    cfg.IntOpt(
        "ak_handle",
        default=0x81010030,
        min=0x81000000,
        max=0x817FFFFF,
        help="""
Persistent handle of the attestation key, which the agent makes when the handle is free.

Change it only when another program has its key there; the agent refuses to use or to replace a key that is
not its own and says so.
""",
    ),
    cfg.IntOpt(
        "log_pcr",
        default=13,
        min=8,
        max=15,
        help="""
The PCR that explains the log of measurements. It must be zero when the host has booted, and nothing else may
extend it.

No PCR is reserved for this. 8 and 9 belong to GRUB, 10 to IMA, 14 to shim; systemd extends 11 and 12 when it
boots a unified kernel image, and 15 at run time too, but 13 only for system extension images that such a boot
measures. Change it where that is in use. The log of the old PCR has to be moved aside, and the host rebooted.
""",
    ),
    cfg.ListOpt(
        "pcrs",
        item_type=types.Integer(min=0, max=23),
        default=[0, 1, 2, 3, 4, 5, 6, 7],
        help="""
The host's own PCRs (SHA-256 bank) that every quote covers, besides ``log_pcr``.

The verifier decides which values it approves. 0 to 7 are firmware, boot loader and Secure Boot; add 8 and 9
(GRUB) or 10 (IMA) when the verifier's policy looks at them. Values that change all the time make rounds
slower: a quote is taken again when a PCR changed under it.
""",
    ),
]
