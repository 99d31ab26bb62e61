"""The demo as a person sees it: a bar per stage, the posts, the closing table, the path of the report."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.markdown import Markdown
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from dagster_project.demo import BUDGETS, open_demo, run, start_over
from dagster_project.demo_facts import closing_rows, gather
from dagster_project.demo_report import write_report
from dagster_project.progress import reporting
from infra.cli import console, print_rows
from infra.kafka_broker import KafkaBroker
from infra.settings import Settings


def run_demo(settings: Settings, *, corpus: str, fresh: bool, kafka: bool) -> None:
    """Run all stages and print what happened. Raises what a stage raises; a second call goes on from there."""
    _quiet_libraries()
    if fresh:
        start_over(settings)
    with _broker(settings, kafka) as effective:
        demo = open_demo(effective, corpus)
        try:
            with _bars() as reporter, reporting(reporter):
                run(demo)
                with demo.stage("report"):
                    facts = gather(demo)
                    path = write_report(facts, effective.home / "demo-report.html")
        finally:
            demo.wiring.close()
    _print_outcome(facts)
    console.print(f"\nReport: {path}", soft_wrap=True)
    console.print('Go on: quill search "…", quill write "…", quill alerts list, quill up', style="dim")


@contextmanager
def _broker(settings: Settings, kafka: bool) -> Iterator[Settings]:
    """The settings to run with; with `--kafka` and no address configured, a broker that lives as long as the demo."""
    if not kafka:
        yield settings
        return
    log = settings.log.model_copy(update={"backend": "kafka"})
    if settings.origins.get("log.bootstrap_servers", "default") != "default":
        yield settings.model_copy(update={"log": log})
        return
    console.print("starting Apache Kafka (from Maven the first time)…", style="dim")
    with KafkaBroker(settings.models.cache / "kafka", settings.home / "kafka") as address:
        log = log.model_copy(update={"bootstrap_servers": address})
        yield settings.model_copy(update={"log": log})


@contextmanager
def _bars() -> Iterator[Any]:
    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description:<18}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[budget]} {task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, Any] = {}

        def reporter(stage: str, done: int, total: int, note: str) -> None:
            if stage not in tasks:
                budget = f"budget {BUDGETS[stage]} s" if stage in BUDGETS else ""
                tasks[stage] = progress.add_task(stage, total=None, budget=budget, note="")
            progress.update(tasks[stage], completed=done, total=total or None, note=note)

        yield reporter


def _print_outcome(facts: dict[str, Any]) -> None:
    for post in facts["posts"]:
        sources = "\n".join(f"[{one['marker']}] {one['source']}: “{one['quote']}”" for one in post["citations"])
        console.print(Panel(Markdown(post["response"]), title=post["prompt"], title_align="left"))
        if sources:
            console.print(sources, style="dim", markup=False)
        for sentence in post["unsupported"]:
            console.print(f"No source supports: {sentence}", style="yellow", markup=False)
    print_rows(closing_rows(facts), as_json=False, title="What the demo did")


def _quiet_libraries() -> None:
    """Third parties log to the console in the middle of the bars; their warnings stay in their own log files."""
    warnings.filterwarnings("ignore")
    for name in ("dagster", "transformers", "sentence_transformers", "httpx", "comet_ml", "alembic", "kafka"):
        logging.getLogger(name).setLevel(logging.ERROR)
