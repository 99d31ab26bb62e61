"""`quill intake`: the consumer that masks what applications produce to `llm.intake`."""

from __future__ import annotations

import signal
import threading
from contextlib import closing
from typing import Annotated

import typer

from infra.cli import JsonFlag, console, print_json
from infra.settings import load_settings

intake_app = typer.Typer(help="The consumer that masks what applications produce to llm.intake.", no_args_is_help=True)


@intake_app.command("run")
def run(
    once: Annotated[bool, typer.Option("--once", help="End when everything there now is passed on.")] = False,
) -> None:
    """Mask and pass on until interrupted; `quill up` does it too. Start several to share the work."""
    from streams.events import LLM_INTAKE
    from streams.intake import Intake
    from streams.masking import open_masker
    from streams.opening import open_log

    settings = load_settings()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with closing(open_log(settings)) as log:
        log.ensure_topics([LLM_INTAKE])
        intake = Intake(log, open_masker(settings.masking))
        if not once:
            console.print("masking llm.intake; interrupt to stop")
        taken = intake.run(stop, until=log.end_offsets(LLM_INTAKE) if once else None)
    console.print(f"passed on {taken} records")


@intake_app.command("status")
def status(as_json: JsonFlag = False) -> None:
    """How many records wait in llm.intake, and how many lie among its dead letters."""
    from streams.dead_letters import dead_letters
    from streams.events import LLM_INTAKE
    from streams.intake import GROUP
    from streams.log import lag
    from streams.opening import open_log

    with closing(open_log(load_settings())) as log:
        found = {"waiting": lag(log, GROUP, LLM_INTAKE), "dead_letters": len(dead_letters(log, LLM_INTAKE))}
    if as_json:
        print_json(found)
    else:
        console.print(f"{found['waiting']} records wait; dead letters {found['dead_letters']}", highlight=False)
