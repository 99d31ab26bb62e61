"""`quill replay`: a window of the past through another judge, prompt or adapter. Models load inside the verbs."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from infra.cli import JsonFlag, print_json, print_rows
from infra.errors import InputError
from infra.settings import load_settings

if TYPE_CHECKING:
    from store.opening import Store


class TopicOrVerb(TyperGroup):
    """`quill replay TOPIC …` is `quill replay run TOPIC …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Called by click with what stands after the group's name."""
        if args and args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


replay_app = typer.Typer(
    help="Run a window of the past through another judge, prompt or adapter.", cls=TopicOrVerb, no_args_is_help=True
)


@replay_app.command("run")
def run(
    topic: Annotated[
        str, typer.Argument(help="llm.interactions; of llm.feedback and llm.evaluations what they speak of.")
    ],
    *,
    since: Annotated[str, typer.Option("--from", metavar="TIME", help="First moment, ISO 8601; UTC if it has none.")],
    until: Annotated[str, typer.Option("--to", metavar="TIME", help="First moment after the window.")],
    judge: Annotated[str, typer.Option(help="'local', 'llm', or a rubric of the prompt store, NAME or NAME@N.")] = "",
    prompt: Annotated[str, typer.Option(help="Answer again with this prompt, NAME@N.")] = "",
    adapter: Annotated[str, typer.Option(help="Answer again with this adapter, id or beginning of one.")] = "",
    name: Annotated[str, typer.Option(help="Name of the result set; default: made from the rest.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Replay what was recorded in a window of time; the same command again goes on where it stopped."""
    window = (_moment(since, "--from"), _moment(until, "--to"))
    from dagster_project.replaying import ReplayRequest, replay
    from dagster_project.resources import Wiring
    from streams.replay import Window

    request = ReplayRequest(
        window=Window(topic=topic, start=window[0], end=window[1]),
        judge=judge,
        prompt=prompt,
        adapter=adapter,
        name=name,
    )
    with closing(Wiring(load_settings())) as wiring, _bar() as on_progress:
        state = replay(wiring, request, on_progress)
        results = wiring.store.replays.results(state.replay.name)
    _print(state, results, as_json=as_json)


@replay_app.command("list")
def list_replays(as_json: JsonFlag = False) -> None:
    """List the replays, the one begun last first."""
    from dagster_project.replay_report import summary

    with _store() as store:
        rows = [summary(state) for state in store.replays.list()]
    print_rows(rows, as_json=as_json, title="replays", empty="none")


@replay_app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="Name of the result set.")],
    as_json: JsonFlag = False,
) -> None:
    """Show a replay beside what happened live: differences with intervals; with --json each result too."""
    with _store() as store:
        state, results = store.replays.get(name), store.replays.results(name)
    _print(state, results, as_json=as_json, each=True)


def _print(state: Any, results: Any, *, as_json: bool, each: bool = False) -> None:
    from dagster_project.replay_report import compared, summary

    rows = compared(results)
    if as_json:
        listed = {"results": [result.model_dump(mode="json") for result in results]} if each else {}
        print_json(summary(state) | {"comparison": rows} | listed)
        return
    print_rows([{"what": key, "value": value} for key, value in summary(state).items()], as_json=False)
    columns = ("criterion", "original_judge", "pairs", "original_mean", "replay_mean", "mean_difference", "low", "high")
    shown = [{column: row[column] for column in columns} | {"judged": f"{row['judged_share']:.0%}"} for row in rows]
    print_rows(shown, as_json=False, title="replay minus original", empty="nothing that both judged")


def _moment(text: str, option: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"{option} is not a time", seen=text, rule="ISO 8601, such as 2026-01-31T12:00Z") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@contextmanager
def _bar() -> Iterator[Callable[[int, int, str], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("replay"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total, note: progress.update(task, completed=done, total=total, description=note)


@contextmanager
def _store() -> "Iterator[Store]":
    from store.opening import open_store

    with closing(open_store(load_settings())) as store:
        yield store
