# SPDX-License-Identifier: Apache-2.0
"""`make cloud` and `make cloud-down`: a cloud to look at, which stays until it is told to go."""

from __future__ import annotations

import argparse
import os
import sys
import warnings


# OpenStack's libraries warn of each other; none of it is for those who read this program's output.
warnings.simplefilter("ignore")

from oslo_service import backend

backend.init_backend(backend.BackendType.THREADING)

from lab import cache_dir
from lab.cloud.cloud import Cloud
from lab.cloud.launch import start
from lab.cloud.processes import Service
from lab.errors import LabError

DIRECTORY = cache_dir() / "cloud"


def main() -> int:
    """Do what the arguments say; 1 when it failed, with the reason on standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start the cloud, unless it runs")
    commands.add_parser("down", help="end the cloud and remove what it stored; logs stay")
    commands.add_parser("status", help="list the processes of the cloud")
    restart = commands.add_parser("restart", help="end processes and start them again as they were started")
    restart.add_argument("names", nargs="+", metavar="NAME", help="as status lists them")
    arguments = parser.parse_args()
    try:
        if arguments.command == "up":
            up()
        elif arguments.command == "down":
            down()
        elif arguments.command == "status":
            status()
        else:
            for name in arguments.names:
                Service(Cloud.attach(DIRECTORY).processes, name).restart()
    except LabError as error:
        print(f"cloud: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def up() -> None:
    """Start the cloud and say how to reach it."""
    try:
        cloud = Cloud.attach(DIRECTORY)
        print("The cloud runs already.")
    except LabError:
        cloud = start(DIRECTORY, lambda line: print(line, flush=True))
    clouds = cloud.identity.write_clouds()
    # The file holds passwords: it belongs to whoever called sudo.
    os.chown(
        clouds, int(os.environ.get("SUDO_UID", os.geteuid())), int(os.environ.get("SUDO_GID", os.getegid()))
    )
    print(f"\n{clouds.read_text()}")
    print(
        f"Logs are in {cloud.layout.logs}, configuration in {cloud.layout.directory / 'etc'}. Use it with:\n"
    )
    print(f"  export OS_CLIENT_CONFIG_FILE={clouds} OS_CLOUD=alpha\n")


def down() -> None:
    """End the cloud, if it runs."""
    try:
        cloud = Cloud.attach(DIRECTORY)
    except LabError:
        print("No cloud runs.")
        return
    cloud.stop()


def status() -> None:
    """List every process that was started."""
    processes = Cloud.attach(DIRECTORY).processes
    for name, entry in sorted(processes.entries().items()):
        print(f"{'runs' if processes.alive(name) else 'ended':6} {entry.pid:8} {name}")


if __name__ == "__main__":
    sys.exit(main())
