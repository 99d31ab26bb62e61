"""The umbrella command `quill`: rooms register their verbs through the entry-point group `quillstream.commands`.

A room's `commands.register(app)` must import nothing heavy: torch, transformers and dagster load inside the
verbs that need them, so help and listing verbs answer at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from infra.errors import QuillError
from infra.identity import canonical_json
from infra.settings import quiet_third_parties

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for other programs instead of a table.")]

console = Console()


def build_app() -> typer.Typer:
    """The command tree with every room's verbs."""
    app = typer.Typer(
        name="quill",
        help="Ground, fine-tune, judge and repair text generation on your own documents.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    for entry in sorted(entry_points(group="quillstream.commands"), key=lambda entry: entry.name):
        entry.load()(app)
    return app


class GroupWithDefault(TyperGroup):
    """A group of verbs in which a first word that is no verb belongs to the verb `DEFAULT`."""

    DEFAULT = "show"

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Put the default verb before what is no verb."""
        known = not args or args[0] in self.commands or args[0].startswith("-")
        return super().resolve_command(ctx, args if known else [self.DEFAULT, *args])


def evaluations(app: typer.Typer) -> typer.Typer:
    """The verbs below `quill evaluate`, to which rooms add what they can measure; `show` takes what is no verb."""
    for known in app.registered_groups:
        if known.name == "evaluate" and known.typer_instance is not None:
            return known.typer_instance
    about = "How good something is: a release or an adapter by its id, or a part of the platform on your own data."
    made = typer.Typer(help=about, no_args_is_help=True, cls=GroupWithDefault)
    app.add_typer(made, name="evaluate")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. A `QuillError` prints one line to standard error and exits with its code (2)."""
    quiet_third_parties()
    try:
        build_app()(args=list(arguments) if arguments is not None else None)
    except QuillError as error:
        sys.stderr.write(f"quill: {error}\n")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(0)
    except KeyboardInterrupt:
        sys.stderr.write("quill: interrupted; run the same command again to go on where it stopped\n")
        sys.exit(130)


def print_json(value: Any, file: TextIO | None = None) -> None:
    """One JSON document, indented, to standard output."""
    plain = json.loads(canonical_json(value))
    (file or sys.stdout).write(json.dumps(plain, indent=2, ensure_ascii=False) + "\n")


def print_rows(
    rows: Sequence[Mapping[str, Any]], *, as_json: bool, title: str = "", empty: str = "nothing yet"
) -> None:
    """A listing: a JSON list of the rows, or a table with a column per key of the first row."""
    if as_json:
        print_json(list(rows))
        return
    if not rows:
        console.print(f"{title + ': ' if title else ''}{empty}")
        return
    table = Table(title=title or None, title_justify="left")
    for key in rows[0]:
        table.add_column(str(key).replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
