# SPDX-License-Identifier: Apache-2.0
"""The programs.

oslo.service decides once for a process how its services run, at the latest when anything imports its service
module, as oslo.messaging does. So this comes before every other import of a program: threads.
"""

import warnings

# Libraries import eventlet where it is installed, though nothing here runs on it; it says so on every start.
warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")

from oslo_service import backend  # noqa: E402

backend.init_backend(backend.BackendType.THREADING)
