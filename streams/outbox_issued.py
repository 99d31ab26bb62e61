"""How many sequence numbers a process has issued, kept where it outlives the process.

The number lies in shared memory of the machine: setting it is a store, not a system call, and it can neither wait for
a disk nor meet a full one. It survives the kill of its process and not the end of the machine; then it is not known.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
from contextlib import suppress
from pathlib import Path

SHARED = Path("/dev/shm")


class Issued:
    """The number of a living process. A file in shared memory where there is any, else a number like others."""

    def __init__(self, folder: Path, writer: str) -> None:
        self._path = _path(folder, writer)
        self._map: mmap.mmap | None = None
        self.numbers: memoryview = memoryview(bytearray(8)).cast("Q")
        """Of length 1: the last number that was issued."""
        fresh = self._path.with_name("." + self._path.name)
        try:
            file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        try:
            # Written, not only stretched: a store into a page that has no room yet would kill the process.
            os.write(file, bytes(8))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._map = mmap.mmap(file, 8)  # holds the lock too: it keeps the file open
            fresh.rename(self._path)
            self.numbers = memoryview(self._map).cast("Q")
        except OSError:
            fresh.unlink(missing_ok=True)
        finally:
            os.close(file)

    def close(self, *, ended: bool) -> None:
        """Let go of it; with `ended` everything that was issued is accounted for, and the file goes away."""
        self.numbers = memoryview(bytearray(8)).cast("Q")
        if self._map is not None:
            if ended:
                self._path.unlink(missing_ok=True)
            with suppress(BufferError):  # a thread is just setting it: freed when it is done
                self._map.close()
            self._map = None


def left_behind(folder: Path) -> dict[str, int]:
    """Writers of this folder whose process is gone, to the last number each had issued."""
    prefix = _path(folder, "").name
    found = {}
    for path in SHARED.glob(f"{prefix}*"):
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # several may ask at once
                found[path.name.removeprefix(prefix)] = int.from_bytes(file.read(8), "little")
        except OSError:
            continue  # its process lives, or another cleaned up
    return found


def forget(folder: Path, writer: str) -> None:
    """Remove the number of a process that is gone."""
    _path(folder, writer).unlink(missing_ok=True)


def _path(folder: Path, writer: str) -> Path:
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return SHARED / f"quillstream-{name}-{writer}"
