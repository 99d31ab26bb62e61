"""`quill demo`, `quill evaluate` and `quill replay`. Dagster and everything heavy loads inside the verbs."""

import time
from pathlib import Path
from typing import Annotated

import typer

from dagster_project.replay_commands import replay_app
from infra.cli import JsonFlag, console, evaluations, print_json, print_rows
from infra.errors import InputError
from infra.settings import Settings, load_settings


def register(app: typer.Typer) -> None:
    """Add the verbs of this room."""
    app.command("demo")(demo)
    evaluations(app).command("show")(evaluate)
    app.add_typer(replay_app, name="replay")


def demo(
    corpus: Annotated[Path | None, typer.Option(help="Your own folder or file instead of the built-in text.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget this installation's state and start over.")] = False,
    kafka: Annotated[
        bool, typer.Option("--kafka", help="Put the stream on Apache Kafka; starts a broker when none is configured.")
    ] = False,
) -> None:
    """Run the whole loop on real text: ingest, features, adapter, release, posts, judges, drift alert, report."""
    settings = _settings_with_corpus(corpus)
    if corpus is not None and not corpus.expanduser().exists():
        raise InputError("there is no such corpus", seen=corpus, fix="give a folder or file that exists")
    from dagster_project.demo_run import run_demo

    run_demo(settings, corpus=str(corpus.expanduser().resolve()) if corpus else "", fresh=fresh, kafka=kafka)


def evaluate(
    target: Annotated[str, typer.Argument(help="Release or adapter id, or an unambiguous beginning of one.")],
    as_json: JsonFlag = False,
) -> None:
    """Report on a release: what it answered and what the judges said; on an adapter: its losses and proof."""
    from dagster_project.evaluation import evaluate_target

    began = time.monotonic()
    outcome = evaluate_target(load_settings(), target)
    if as_json:
        print_json(outcome)
        return
    print_rows([{"what": key, "value": value} for key, value in outcome.items()], as_json=False)
    console.print(f"{time.monotonic() - began:.1f} s", style="dim")


def _settings_with_corpus(corpus: Path | None) -> Settings:
    """A foreign corpus has its own installation beside the default one, so that neither deletes the other's text."""
    settings = load_settings()
    if corpus is None:
        return settings
    name = corpus.expanduser().resolve().name or "root"
    return load_settings(overrides={"home": str(settings.home / "corpora" / name)})
