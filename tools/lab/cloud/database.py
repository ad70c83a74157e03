# SPDX-License-Identifier: Apache-2.0
"""MariaDB for a cloud, and a copy of migrated databases, because migrations take half of a cloud's start."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from lab import REPOSITORY, cache_dir
from lab.cloud.layout import DATABASES, Layout
from lab.cloud.processes import CONTROL, Processes
from lab.errors import LabError

# Ours is upgraded at each start: its migrations change with the tree.
SEEDED = tuple(name for name in DATABASES if name != "attest")
# What the contents of the databases are made by.
MADE_BY = (
    "constraints.txt",
    "tools/lab/cloud/database.py",
    "tools/lab/cloud/identity.py",
    "tools/lab/cloud/nova.py",
)


class Database:
    """The server, and what is in it when a cloud starts."""

    def __init__(self, layout: Layout, processes: Processes) -> None:
        self._layout = layout
        self._processes = processes

    def start(self) -> None:
        """Start a new server with empty databases and one user for all services."""
        data = self._layout.state("mysql")
        data.mkdir(parents=True)
        arguments = ["--no-defaults", "--user=root", f"--datadir={data}"]
        # --force: whether the machine can look its own name up does not matter here.
        _run(
            [
                "mariadb-install-db",
                *arguments,
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                "--force",
            ]
        )
        self._processes.start(
            "mariadb",
            [
                "mariadbd", *arguments, f"--socket={self._layout.database_socket}", "--skip-networking",
                f"--pid-file={data}/pid", "--max-connections=500", "--skip-log-bin",
                # Thrown away after a crash, so nothing waits for the disk.
                "--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0",
                "--innodb-buffer-pool-size=128M", "--character-set-server=utf8mb4",
            ],
            space=CONTROL,
        )  # fmt: skip
        self._processes.until(self._answers, "mariadb", 60)
        secret = self._layout.password
        self.execute(
            "".join(f"CREATE DATABASE {name} CHARACTER SET utf8mb3;" for name in DATABASES)
            + f"CREATE USER cloud@localhost IDENTIFIED BY '{secret}'; GRANT ALL ON *.* TO cloud@localhost;"
        )

    def execute(self, sql: str) -> str:
        """Run SQL as the server's root and return the rows, a line each, fields separated by tabs."""
        return _run([*self._client("mariadb"), "--batch", "--skip-column-names"], sql)

    def restore(self) -> bool:
        """Fill the databases from the copy that fits this tree; False when there is none.

        The fernet keys, and the password that the copy's users have, come from it too: the caller reads it
        with :func:`seed_password` before it writes any configuration.
        """
        seed = seed_directory()
        if not seed.exists():
            return False
        shutil.copytree(seed / "keys", self._layout.state("keystone"), dirs_exist_ok=True)
        dump = gzip.decompress((seed / "databases.sql.gz").read_bytes()).decode()
        self.execute(f"SET foreign_key_checks=0, unique_checks=0;\n{dump}")
        return True

    def keep(self) -> None:
        """Keep a copy of the databases as they are, for the next cloud."""
        seed = seed_directory()
        seed.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=seed.parent) as scratch:
            copy = Path(scratch, "seed")
            shutil.copytree(self._layout.state("keystone"), copy / "keys")
            dump = _run([*self._client("mariadb-dump"), "--single-transaction", "--databases", *SEEDED])
            (copy / "databases.sql.gz").write_bytes(gzip.compress(dump.encode()))
            (copy / "password").write_text(self._layout.password)
            copy.chmod(0o700)
            if not seed.exists():
                copy.rename(seed)

    def _client(self, name: str) -> list[str]:
        return [name, "--no-defaults", f"--socket={self._layout.database_socket}", "--user=root"]

    def _answers(self) -> bool:
        command = [*self._client("mariadb-admin"), "ping"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def seed_directory() -> Path:
    """Where the copy lies, or would lie, that fits the pinned versions and the code that fills databases."""
    total = hashlib.sha256()
    for name in MADE_BY:
        total.update(hashlib.sha256((REPOSITORY / name).read_bytes()).digest())
    return cache_dir() / "cloud-seeds" / total.hexdigest()[:16]


def seed_password() -> str:
    """The password of the users in the copy; empty without a copy."""
    path = seed_directory() / "password"
    return path.read_text() if path.exists() else ""


def _run(command: list[str], given: str = "") -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout
