# SPDX-License-Identifier: Apache-2.0
"""`make cloud` and `make cloud-down`: a cloud to look at, which stays until it is told to go."""

from __future__ import annotations

import sys

from oslo_service import backend

backend.init_backend(backend.BackendType.THREADING)

from lab import cache_dir
from lab.cloud.cloud import Cloud
from lab.errors import LabError


def main() -> int:
    """Start the cloud, or end it with the argument ``down``."""
    directory = cache_dir() / "cloud"
    try:
        if sys.argv[1:] == ["down"]:
            Cloud.attach(directory).stop()
        else:
            cloud = Cloud.start(directory, lambda line: print(line, flush=True))
            print(cloud.identity.write_clouds())
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
