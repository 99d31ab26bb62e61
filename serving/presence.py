"""Which server of an installation runs: `<home>/server.json`, written when it is ready, removed when it ends."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from infra.artifacts import write_atomic
from infra.identity import Value

FILE = "server.json"
ANSWER_SECONDS = 10.0


class Presence(Value):
    """A server that has said it is ready."""

    pid: int = Field(gt=0, description="Its process.")
    url: str = Field(description="Base URL, such as http://127.0.0.1:8400.")


def announce(home: Path, presence: Presence) -> None:
    """Tell other processes of this installation whom to ask."""
    write_atomic(home / FILE, presence.model_dump_json().encode())


def withdraw(home: Path) -> None:
    """Take the announcement back, unless another server has written its own since."""
    current = _read(home)
    if current is not None and current.pid == os.getpid():
        (home / FILE).unlink(missing_ok=True)


def running(home: Path) -> Presence | None:
    """The server of this installation, when its process lives and it answers for this home; None otherwise.

    A file left behind by a killed server names a process that is gone, or one that is something else now.
    """
    presence = _read(home)
    if presence is None or not _lives(presence.pid):
        return None
    import httpx

    try:
        answer = httpx.get(f"{presence.url}/healthz", timeout=ANSWER_SECONDS, trust_env=False).json()
    except (httpx.HTTPError, ValueError):
        return None
    ours = isinstance(answer, dict) and answer.get("pid") == presence.pid and answer.get("home") == str(home)
    return presence if ours else None


def _read(home: Path) -> Presence | None:
    try:
        return Presence.model_validate_json((home / FILE).read_bytes())
    except (OSError, ValueError):
        return None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
