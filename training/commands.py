"""`quill dataset build` and `quill train`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.cli import JsonFlag, console, print_json
from infra.errors import NotFound
from infra.settings import load_settings
from store.commands import dataset_app

if TYPE_CHECKING:
    from infra.artifacts import Manifest
    from infra.settings import Settings
    from store.opening import Store

MaxRows = Annotated[int, typer.Option("--max-rows", min=2, help="Upper bound of rows, held-out ones included.")]
RecipeName = Annotated[str, typer.Argument(metavar="[RECIPE]", help="'default' or 'tiny'.")]
Seconds = Annotated[float | None, typer.Option("--seconds", min=1, help="Seconds of training steps.")]
DatasetId = Annotated[str, typer.Option("--dataset", help="Dataset id, or its first digits; default: the newest.")]


def register(app: typer.Typer) -> None:
    """Add `train` to the umbrella command; `dataset build` joins the store's `dataset` verbs."""
    app.command("train")(train_adapter)


@dataset_app.command("build")
def build_dataset(max_rows: MaxRows = 400, as_json: JsonFlag = False) -> None:
    """Make the instruct dataset of the documents as they are now, or find the one made before."""
    from infra.llm.opening import open_chat
    from training.dataset import build

    settings = load_settings()
    with _store(settings) as store, _bar("dataset", shown=not as_json) as tell:
        writer = open_chat(settings.llm, settings.models) if settings.llm.endpoint else None
        manifest = build(store, writer=writer, max_rows=max_rows, on_progress=tell)
    _show(manifest, as_json)


def train_adapter(
    recipe: RecipeName = "default", seconds: Seconds = None, dataset: DatasetId = "", as_json: JsonFlag = False
) -> None:
    """Train a LoRA adapter and prove that the serving engine runs what was trained."""
    from training.lora import train
    from training.recipes import recipe_named

    settings = load_settings()
    chosen = recipe_named(recipe, settings.models.adapter_base)
    if seconds is not None:
        chosen = chosen.model_copy(update={"seconds": seconds})
    with _store(settings) as store, _bar("adapter", shown=not as_json) as tell:
        manifest = train(store.artifacts, _dataset(store, dataset), chosen, settings.models, tell)
    _show(manifest, as_json)


def _dataset(store: Store, wanted: str) -> Manifest:
    known = store.artifacts.list("dataset")
    digits = wanted.removeprefix("sha256:")
    found = [manifest for manifest in known if manifest.id.removeprefix("sha256:").startswith(digits)]
    if not found or (wanted and len(found) > 1):
        rule = "the beginning of exactly one dataset's id" if wanted else "a dataset is there"
        fix = "list them: quill dataset list" if known else "make one: quill ingest PATH, then quill dataset build"
        raise NotFound("no such dataset", seen=wanted or None, rule=rule, fix=fix)
    return found[-1]


@contextmanager
def _store(settings: Settings) -> Iterator[Store]:
    from store.opening import open_store

    store = open_store(settings)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def _bar(name: str, *, shown: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar; total 0 means that nobody knows how long it takes."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
        task = progress.add_task(name, total=None)

        def tell(done: int, total: int, note: str) -> None:
            progress.update(task, completed=done, total=total or None, description=f"{name}: {note}")

        yield tell


def _show(manifest: Manifest, as_json: bool) -> None:
    summary = {"kind": manifest.kind, "id": manifest.id, **manifest.summary}
    if as_json:
        print_json(summary)
        return
    for name, value in summary.items():
        if name != "loss_curve":
            console.print(f"{name.replace('_', ' '):22} {_text(value)}", highlight=False, soft_wrap=True)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
