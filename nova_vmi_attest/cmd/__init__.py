# SPDX-License-Identifier: Apache-2.0
"""The programs.

oslo.service decides once for a process how its services run, at the latest when anything imports its
service module, as oslo.messaging does. So this comes before every other import of a program: threads.
"""

from oslo_service import backend

backend.init_backend(backend.BackendType.THREADING)
