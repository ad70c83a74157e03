# SPDX-License-Identifier: Apache-2.0
"""CPU feature bits that introspection looks at, as numbered in arch/x86/include/asm/cpufeatures.h.

These have kept their numbers since they were introduced. Bits that moved between releases are not
listed: they must be found by evidence in the image.
"""

RETPOLINE = 11 * 32 + 12
RETPOLINE_LFENCE = 11 * 32 + 13
RETHUNK = 11 * 32 + 14
ALWAYS = 3 * 32 + 21
