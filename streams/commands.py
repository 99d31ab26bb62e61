"""`quill mask`, and `quill intake` beside it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import typer

from infra.errors import InputError
from infra.settings import load_settings
from streams.intake_commands import intake_app


def register(app: typer.Typer) -> None:
    """Add the verbs of the streams to the umbrella command."""
    app.command("mask")(mask)
    app.add_typer(intake_app, name="intake")


def mask() -> None:
    """Mask personal data and secrets: JSON lines in on standard input, JSON lines out on standard output.

    Each line in is an object with a "text"; each line out has the masked "text" and the "spans" that were masked, as
    {"type", "start", "end"} with offsets in characters of the original text. Other members are not passed on.
    """
    for line in masked_lines(sys.stdin.buffer):
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


def masked_lines(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Each line with its text masked as the settings say, without blank lines. `InputError` names a bad line."""
    from streams.masking import open_masker

    masker = open_masker(load_settings().masking)
    for number, line in enumerate(lines, start=1):
        if line.strip():
            masked = masker.mask(_text(line, number))
            spans = [{"type": span.kind, "start": span.start, "end": span.end} for span in masked.spans]
            # A lone surrogate has no UTF-8 form; the escape that stands in for it is the one JSON uses.
            written = json.dumps({"text": masked.text, "spans": spans}, ensure_ascii=False)
            yield written.encode("utf-8", "backslashreplace") + b"\n"


def _text(line: bytes, number: int) -> str:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        # The message of the error may quote what is not masked yet.
        reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise InputError(f"line {number} is not JSON", rule=reason, fix='write one {"text": "…"} a line') from None
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise InputError(
            f"line {number} has no text",
            rule='each line is a JSON object whose "text" is a string',
            fix='write one {"text": "…"} a line',
        )
    return str(value["text"])
