# SPDX-License-Identifier: Apache-2.0
"""What web servers load.

oslo.service decides once for a process how its services run, at the latest when oslo.messaging is imported.
So this comes before the imports of the applications: threads.
"""

from oslo_service import backend

backend.init_backend(backend.BackendType.THREADING)
