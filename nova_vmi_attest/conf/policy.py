# SPDX-License-Identifier: Apache-2.0
"""Options of the appraisal policy: what makes evidence trusted.

An option that weakens the verdict is named ``unsafe_*``, is off by default, and each use of it is logged.
"""

from __future__ import annotations

from oslo_config import cfg, types

GROUP = cfg.OptGroup("policy", title="Appraisal policy")

ALL_CHECKS = (
    "page_tables",
    "text",
    "rodata",
    "control",
    "idt",
    "modules",
    "executable_pages",
    "hooks",
    "processes",
)

OPTIONS = [
    cfg.ListOpt(
        "required_checks",
        default=list(ALL_CHECKS),
        help="""
The checks that a guest must have passed to be trusted; a missing one makes it unknown.

Add the names of your own checks (entry point group ``nova_vmi_attest.checks``). Leaving one of the built-in
checks out weakens every verdict, and the verifier says so when it starts.
""",
    ),
    cfg.IntOpt(
        "log_pcr",
        default=13,
        min=0,
        max=23,
        help="""
Index of the PCR that agents extend with their measurement log; the same as ``[tpm] log_pcr`` on the hosts.
""",
    ),
    cfg.ListOpt(
        "host_pcrs",
        default=[0, 1, 2, 3, 4, 5, 6, 7],
        item_type=types.Integer(0, 23),
        help="""
PCRs of the host that every quote must cover besides the log's; must be among ``[tpm] pcrs`` on the hosts.

They carry measured boot (0-7); add 10 for IMA. Evidence that leaves one out makes the host untrusted.
""",
    ),
    cfg.MultiStrOpt(
        "approved_pcr",
        default=[],
        help="""
An approved value of one host PCR: ``INDEX:HEX``, with the SHA-256 value in 64 hex digits. May be repeated;
one PCR may have several approved values.

Without an approved value for a PCR its value is recorded and not appraised, and the verdict rests on trusting
the host's own boot. Set them for as many PCRs as your hosts keep stable.
""",
    ),
    cfg.BoolOpt(
        "unsafe_tolerate_hooks",
        default=False,
        help="""
Trust guests although functions of their kernels are hooked by ftrace, kprobes or BPF.

Only for guests that are traced on purpose: rootkits use the same hooks.
""",
    ),
    cfg.BoolOpt(
        "unsafe_tolerate_unlisted_modules",
        default=False,
        help="""
Trust guests that loaded modules which are not in their kernel's reference package.

The code of such a module cannot be checked. Import the package that ships the module instead where there is
one.
""",
    ),
]
