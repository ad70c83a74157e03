# SPDX-License-Identifier: Apache-2.0
"""The exact code that a kernel and its modules must have after patching themselves: one mechanism a file.

:mod:`.text` and :mod:`.module` compose the mechanisms; :mod:`.patching` is what they share, and
:mod:`.inputs` what they take from the guest. Another generation of kernels is another layout or rule in the
file of its mechanism, chosen by what the image holds (entry sizes, sections, symbols), never by a version.
"""
