"""`quill up`, `search`, `write` and `doctor`. FastAPI and everything heavier loads inside the verbs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from infra.cli import JsonFlag, console, print_json, print_rows
from infra.errors import InputError
from infra.settings import load_settings

FAILED = 2


def register(app: typer.Typer) -> None:
    """Add the verbs of this room."""
    app.command("up")(up)
    app.command("search")(search)
    app.command("write")(write)
    app.command("doctor")(doctor)


def up(
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = None,
    features: Annotated[bool, typer.Option(help="Keep the index up to date in this process.")] = True,
    monitor: Annotated[bool, typer.Option(help="Store and judge the stream in this process.")] = True,
    intake: Annotated[bool, typer.Option(help="Mask what applications produce to llm.intake in this process.")] = True,
) -> None:
    """Serve the API on loopback: chat completions, search, writing, feedback; with the consumers beside it."""
    settings = load_settings(overrides={} if port is None else {"server.port": port})
    from serving.running import serve
    from serving.weights import fetch_missing

    fetch_missing(settings)
    serve(settings, features=features, monitor=monitor, intake=intake, on_ready=_say_ready)


def search(
    question: Annotated[str, typer.Argument(help="What to look for.")],
    limit: Annotated[int, typer.Option(min=1, max=50, help="Most chunks to show.")] = 8,
    as_json: JsonFlag = False,
) -> None:
    """Find the most relevant chunks; asks the running server when there is one."""
    from serving import asking
    from serving.surface import SearchRequest

    found = asking.search(load_settings(), SearchRequest(question=_words(question), limit=limit))
    if as_json:
        print_json([hit.model_dump() for hit in found])
        return
    rows = [{"score": f"{hit.score:.3f}", "source": hit.source, "text": _shortened(hit.text)} for hit in found]
    print_rows(rows, as_json=False, empty="nothing relevant")


def write(
    question: Annotated[str, typer.Argument(help="What to write about.")],
    stream: Annotated[bool, typer.Option("--stream", help="Show the text while it is written.")] = False,
    channel: Annotated[str, typer.Option(help="Release channel that answers.")] = "production",
    as_json: JsonFlag = False,
) -> None:
    """Write text grounded in your documents, with checked citations; asks the running server when there is one."""
    from serving import asking
    from serving.surface import WriteRequest

    on_text = _show_piece if stream else None
    request = WriteRequest(question=_words(question), channel=channel)
    answer = asking.write(load_settings(), request, on_text)
    if stream:
        sys.stderr.write("\n\n")
    if as_json:
        print_json(answer)
        return
    console.print(answer.text, markup=False, highlight=False)
    for number, cited in enumerate(answer.citations, start=1):
        console.print(f"[{number}] {cited.source}: “{cited.quote}”", style="dim", markup=False, highlight=False)
    console.print(f"{answer.interaction_id}  {answer.latency_ms / 1000:.1f} s", style="dim", highlight=False)


def doctor(
    fetch: Annotated[bool, typer.Option("--fetch", help="Download the weights that are missing.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check every setting, connection and model, and say how to mend what is not right."""
    settings = load_settings()
    from serving.doctor import examine, listed
    from serving.weights import fetch_missing

    if fetch:
        fetch_missing(settings)
    checks = examine(settings)
    rows = listed(settings)
    if as_json:
        print_json({"settings": rows, "checks": checks})
    else:
        print_rows(rows, as_json=False, title="settings")
        print_rows([check.row() for check in checks], as_json=False, title="checks")
    if any(check.required and check.state == "failed" for check in checks):
        raise typer.Exit(FAILED)


def _say_ready(url: str) -> None:
    console.print(f"Quillstream answers at {url}   OpenAPI docs: {url}/docs   stop with Ctrl-C", soft_wrap=True)


def _words(text: str) -> str:
    from serving.surface import MAX_QUESTION

    words = text.strip()
    if not words or len(words) > MAX_QUESTION:
        raise InputError("not a question", seen=words or "nothing", rule=f"1 to {MAX_QUESTION} characters")
    return words


def _show_piece(piece: str) -> None:
    sys.stderr.write(piece)
    sys.stderr.flush()


def _shortened(text: str, limit: int = 240) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
