"""A PostgreSQL server for tests, from the packages of the operating system: own directory, Unix socket only.

Not installed: tests that ask for it are skipped with the reason, or fail where the environment says CI=true.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest

SWITCHES = "-c listen_addresses='' -c fsync=off -c full_page_writes=off -c synchronous_commit=off"
_numbers = count(1)


class PostgresServer:
    """One server in a temporary directory, run as the user `postgres` when the tests run as root."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self.directory = Path(tempfile.mkdtemp(prefix="quill-pg-"))

    def start(self) -> None:
        """Create the cluster and wait until it answers."""
        if os.getuid() == 0:
            shutil.chown(self.directory, "postgres", "postgres")
        self._run("initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync")
        self.resume()

    def resume(self) -> None:
        """Start the server on its directory, after `pause` too."""
        switches = f"{SWITCHES} -c unix_socket_directories={self.directory}"
        self._run("pg_ctl", "-w", "-t", "60", "-l", str(self.directory / "server.log"), "-o", switches, "start")

    def pause(self) -> None:
        """Stop the server as its operator would: connections are cut, nothing is lost."""
        self._run("pg_ctl", "-w", "-m", "fast", "stop")

    def stop(self) -> None:
        """Stop the server and remove its directory."""
        self._run("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(self.directory)

    def new_database(self) -> str:
        """The URL of a fresh, empty database."""
        name = f"quill{next(_numbers)}"
        with psycopg.connect(f"host={self.directory} user=postgres dbname=postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://postgres@/{name}?host={self.directory}"

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), "-D", str(self.directory / "data"), *arguments]
        if os.getuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        done = subprocess.run(
            command, cwd=self.directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stderr or done.stdout}")


def find_programs() -> Path | str:
    """The folder of initdb and pg_ctl of the newest installed version, or the reason why there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda file: float(file.parts[-3]))
    if not found:
        return "PostgreSQL is not installed (apt-get install postgresql)"
    if os.getuid() == 0 and "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
        return "PostgreSQL does not run as root and there is no user postgres"
    return found[-1].parent


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A running server for the whole test run."""
    programs = find_programs()
    if isinstance(programs, str):
        if os.environ.get("CI") == "true":
            pytest.fail(programs)
        pytest.skip(programs)
    server = PostgresServer(programs)
    server.start()
    yield server
    server.stop()
