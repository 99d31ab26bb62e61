"""`quill dlq`: what could not be handled, and sending it again."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.cli import JsonFlag, console, print_json, print_rows
from infra.errors import InputError, NotFound

if TYPE_CHECKING:
    from streams.dead_letters import DeadLetter
    from streams.log import EventLog, StoredRecord

SHOWN = 4000
"""Characters of a value that `show` prints; `--json` prints all."""

dlq_app = typer.Typer(help="Dead letters: list, show and replay what could not be handled.", no_args_is_help=True)

Again = Annotated[bool, typer.Option("--again", help="Also what was replayed before.")]


def register(app: typer.Typer) -> None:
    """Add the verbs of dead letters to the umbrella command."""
    app.add_typer(dlq_app, name="dlq")


@dlq_app.command("list")
def list_letters(
    topics: Annotated[
        list[str] | None, typer.Argument(metavar="[TOPIC]…", help="Any topics; default: those of the contract.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the dead letters, oldest first within a topic."""
    from streams.dead_letters import dead_letters
    from streams.events import TOPICS

    with _log() as log:
        letters = [letter for topic in _known(log, topics) or TOPICS for letter in dead_letters(log, topic)]
    if as_json:
        print_json([_row(letter) for letter in letters])
        return
    rows = [
        {
            "letter": letter.id,
            "time": f"{letter.time:%Y-%m-%d %H:%M}",
            "key": _cell(letter.key, 40),
            "attempts": letter.attempts,
            "replayed": f"{letter.replayed_at:%Y-%m-%d %H:%M}" if letter.replayed_at else "",
            "error": _cell(letter.error, 200),
        }
        for letter in letters
    ]
    print_rows(rows, as_json=False, title="dead letters", empty="none")


@dlq_app.command("show")
def show_letter(
    letter: Annotated[str, typer.Argument(metavar="LETTER", help="TOPIC/PARTITION/OFFSET as listed.")],
    as_json: JsonFlag = False,
) -> None:
    """Show a dead letter: why it is one, its headers and its value."""
    from streams.dead_letters import find_letters, read_letter

    if "/" not in letter:
        raise InputError("not the name of a dead letter", seen=letter, rule="TOPIC/PARTITION/OFFSET")
    with _log() as log:
        (found,) = find_letters(log, [letter])
        record = read_letter(log, found)
    if as_json:
        print_json(_row(found) | {"headers": _headers(record)} | _value(record.value))
        return
    for name, value in _row(found).items():
        _print(f"{name.replace('_', ' ')}: {'' if value is None else value}")
    _print("\nheaders")
    for name, text in _headers(record):
        _print(f"  {name}: {text}")
    text = record.value[: 4 * SHOWN].decode("utf-8", "backslashreplace")
    rest = f"… ({len(record.value)} bytes; --json prints all)" if len(text) > SHOWN else ""
    _print(f"\nvalue\n{text[:SHOWN]}{rest}")


@dlq_app.command("replay")
def replay_letters(
    letters: Annotated[
        list[str], typer.Argument(metavar="LETTER…", help="TOPIC/PARTITION/OFFSET as listed, or TOPIC for all of it.")
    ],
    again: Again = False,
    as_json: JsonFlag = False,
) -> None:
    """Send dead letters to their topic again, as they came; what was replayed before is left alone."""
    from streams.dead_letters import find_letters, replay

    rows: list[dict[str, Any]] = []
    with _log() as log:
        for letter in find_letters(log, letters):
            if letter.replayed_at and not again:
                rows.append({"letter": letter.id, "replayed": False, "to": None, "before": letter.replayed_at})
                continue
            partition, offset = replay(log, letter)
            to = f"{letter.topic}/{partition}/{offset}"
            rows.append({"letter": letter.id, "replayed": True, "to": to, "before": letter.replayed_at})
    if as_json:
        print_json([row | {"before": row["before"] and row["before"].isoformat()} for row in rows])
        return
    for row in rows:
        before = f"replayed {row['before']:%Y-%m-%d %H:%M}; once more with --again" if row["before"] else ""
        _print(f"{row['letter']} → {row['to'] or before}")
    _print(f"{sum(row['replayed'] for row in rows)} of {len(rows)} dead letters replayed")


def _known(log: EventLog, topics: list[str] | None) -> list[str]:
    """The topics that are named, by their own names or those of their dead letters. `NotFound` for what is neither."""
    from streams.dead_letters import dead_letter_topic
    from streams.events import TOPICS
    from streams.log import check_appendable

    named = [topic.removesuffix(".dlq") for topic in topics or []]
    for topic in named:
        check_appendable(topic, [])
        if topic not in TOPICS and not log.partitions(topic) and not log.partitions(dead_letter_topic(topic)):
            raise NotFound("the log has no such topic", seen=topic, fix="leave it out to list those of the contract")
    return named


@contextmanager
def _log() -> Iterator[EventLog]:
    from infra.settings import load_settings
    from streams.opening import open_log

    with closing(open_log(load_settings())) as log:
        yield log


def _row(letter: DeadLetter) -> dict[str, Any]:
    return {"letter": letter.id, **letter.model_dump(mode="json")}


def _headers(record: StoredRecord) -> list[tuple[str, str]]:
    return [(name, value.decode("utf-8", "backslashreplace")) for name, value in record.headers]


def _value(value: bytes) -> dict[str, str]:
    try:
        return {"value": value.decode()}
    except UnicodeDecodeError:
        return {"value_base64": base64.b64encode(value).decode()}


def _cell(text: str, limit: int) -> str:
    from rich.markup import escape

    return escape(_printable(text if len(text) <= limit else f"{text[:limit]}…"))


def _printable(text: str) -> str:
    """The text with what could steer a terminal written out, such as \\x1b; line breaks and tabs stay."""
    return "".join(
        each if each.isprintable() or each in "\n\t" else each.encode("unicode_escape", "backslashreplace").decode()
        for each in text
    )


def _print(text: str) -> None:
    console.print(_printable(text), markup=False, highlight=False, soft_wrap=True, emoji=False)
