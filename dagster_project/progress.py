"""How far a stage is: rooms take callbacks, the demo shows bars, a daemon run stays quiet."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Reporter = Callable[[str, int, int, str], None]
"""(stage, done, total, note); total 0 means unknown."""

_reporter: ContextVar[Reporter | None] = ContextVar("quillstream_reporter", default=None)


@contextmanager
def reporting(reporter: Reporter) -> Iterator[None]:
    """Send progress of everything that runs inside the block, in this thread, to `reporter`."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


def report(stage: str, done: int = 0, total: int = 0, note: str = "") -> None:
    """Tell how far a stage is; nobody listening is fine."""
    reporter = _reporter.get()
    if reporter is not None:
        reporter(stage, done, total, note)
