"""`quill monitor`, `quill alerts`, `quill judge`. Models load inside the verbs that need them."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from infra.cli import JsonFlag, console, print_json, print_rows
from infra.settings import Settings, load_settings

if TYPE_CHECKING:
    from store.opening import Store
    from streams.events import AlertChanged
    from streams.log import EventLog
    from streams.protocols import Judge, JudgeInput, Judgement

BATCH = 16
ONCE_SECONDS = 24 * 3600.0

monitor_app = typer.Typer(help="The consumer that stores, judges and watches the stream.", no_args_is_help=True)
alerts_app = typer.Typer(help="What the detectors found.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add this room's verbs to the umbrella command."""
    app.add_typer(monitor_app, name="monitor")
    app.add_typer(alerts_app, name="alerts")
    app.command("judge")(judge)


@monitor_app.command("run")
def run(
    llm: Annotated[bool, typer.Option(help="Ask the LLM judge about a sample.")] = True,
    once: Annotated[bool, typer.Option("--once", help="End when everything on the stream now is handled.")] = False,
) -> None:
    """Consume the stream until interrupted; start several to share the work."""
    from monitoring.opening import open_monitor
    from streams.events import LLM_FEEDBACK, LLM_INTERACTIONS

    with _opened() as (settings, log, store):
        monitor = open_monitor(settings, log, store, llm=llm)
        if once:
            log.ensure_topics([LLM_INTERACTIONS, LLM_FEEDBACK])
            ends = {topic: log.end_offsets(topic) for topic in (LLM_INTERACTIONS, LLM_FEEDBACK)}
            console.print(f"handled {monitor.run_until(ends, timeout=ONCE_SECONDS)} records")
            return
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        console.print("monitoring llm.interactions; interrupt to stop")
        monitor.run(stop)


@monitor_app.command("status")
def status(as_json: JsonFlag = False) -> None:
    """How far the monitor is, what it judged, and where its detectors stand."""
    from monitoring.opening import monitor_status

    with _opened() as (_, log, store):
        found = monitor_status(log, store)
    if as_json:
        print_json(found)
        return
    lags = ", ".join(f"{topic} {behind}" for topic, behind in found["lag"].items())
    console.print(f"interactions {found['interactions']}; events behind: {lags}")
    behind = [each for each in found["progress"] if each["behind"]]
    print_rows(behind, as_json=False, title="not handled yet", empty="nothing waits")
    print_rows(found["means"], as_json=False, title="verdicts", empty="nothing judged yet")
    print_rows(found["detectors"], as_json=False, title="detectors")


@alerts_app.command("list")
def list_alerts(
    state: Annotated[Literal["open", "resolved"] | None, typer.Option(help="Only these.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Alerts, last opened first."""
    with _opened() as (_, _log, store):
        found = store.alerts.list(state)
    print_rows(
        [alert.model_dump(mode="json") if as_json else _row(alert) for alert in found],
        as_json=as_json,
        title="alerts",
        empty="none",
    )


@alerts_app.command("show")
def show_alert(alert_id: str, as_json: JsonFlag = False) -> None:
    """One alert with its evidence: id or a unique beginning of it."""
    from monitoring.alerts import find

    with _opened() as (_, _log, store):
        alert = find(store, alert_id)
        prompts = {one.interaction_id: one.prompt for _, one in store.interactions.list(ids=alert.interaction_ids)}
    if as_json:
        print_json(alert)
        return
    print_rows([_row(alert)], as_json=False)
    print_rows([one.model_dump() for one in alert.slices], as_json=False, title="shared", empty="nothing in common")
    evidence = [{"interaction": one, "prompt": prompts.get(one, "")[:100]} for one in alert.interaction_ids]
    print_rows(evidence, as_json=False, title="evidence, most telling first")
    console.print(alert.note)


@alerts_app.command("resolve")
def resolve_alert(
    alert_id: str,
    note: Annotated[str, typer.Option(help="Why.")] = "resolved by hand",
    as_json: JsonFlag = False,
) -> None:
    """Close an open alert; its detector starts a fresh run."""
    from monitoring.alerts import AlertDesk, find
    from streams.events import OPS_ALERTS

    with _opened() as (_, log, store):
        log.ensure_topics([OPS_ALERTS])
        alert = AlertDesk(log, store).resolve(find(store, alert_id).alert_id, note)
    if as_json:
        print_json(alert)
    else:
        console.print(f"resolved {alert.alert_id}")


def judge(
    as_json: JsonFlag = False,
    llm: Annotated[bool, typer.Option("--llm", help="The LLM judge instead of the local one.")] = False,
) -> None:
    """Judge JSON lines {"prompt", "response", "context"?} from standard input; one JSON line each, in order."""
    del as_json  # lines of JSON are the only form; the flag is taken for symmetry with the listing verbs
    settings = load_settings()
    chosen: Judge
    if llm:
        from monitoring.opening import open_llm_judge
        from store.opening import open_store

        chosen = open_llm_judge(settings, open_store(settings))
    else:
        from infra.embedder import open_embedder
        from monitoring.local_judge import LocalJudge

        chosen = LocalJudge(open_embedder(settings.models))
    for lines in _batches(1 if llm else BATCH):
        for answer in _judged(chosen, lines):
            sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
        sys.stdout.flush()


def _judged(chosen: Judge, lines: list[str]) -> list[dict[str, Any]]:
    """One answer per line; a line that is no subject is answered with the reason."""
    subjects = [_subject(line) for line in lines]
    judgements = iter(chosen.judge([subject for subject in subjects if not isinstance(subject, str)]))
    return [{"unscored": one} if isinstance(one, str) else _plain(next(judgements)) for one in subjects]


def _subject(line: str) -> JudgeInput | str:
    from pydantic import ValidationError

    from streams.protocols import JudgeInput

    try:
        fields = json.loads(line)
        if isinstance(fields, dict) and isinstance(fields.get("context"), str):
            fields["context"] = [fields["context"]]
        wanted = ("prompt", "response", "context")
        return JudgeInput.model_validate({key: fields[key] for key in wanted if fields.get(key) is not None})
    except ValidationError as error:
        first = error.errors()[0]
        return f"not a subject: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    except (ValueError, TypeError, AttributeError) as error:
        return f"not a JSON object: {error}"


def _plain(judgement: Judgement) -> dict[str, Any]:
    from streams.events import Verdict

    found: dict[str, Any] = {
        score.criterion: {"score": score.score, "justification": score.justification}
        if isinstance(score, Verdict)
        else {"unscored": score.reason}
        for score in judgement.scores
    }
    reasons = {score.reason for score in judgement.scores if not isinstance(score, Verdict)}
    whole = not any(isinstance(score, Verdict) for score in judgement.scores)
    return {"unscored": "; ".join(sorted(reasons)), **found} if whole else found


def _batches(size: int) -> Iterator[list[str]]:
    """Non-empty lines of standard input, `size` at a time."""
    lines: list[str] = []
    for line in sys.stdin:
        if line.strip():
            lines.append(line)
        if len(lines) == size:
            yield lines
            lines = []
    if lines:
        yield lines


def _row(alert: AlertChanged) -> dict[str, Any]:
    return {
        "alert": alert.alert_id,
        "state": alert.state,
        "severity": alert.severity,
        "opened": alert.opened_at.isoformat(timespec="seconds"),
        "title": alert.title,
        "evidence": len(alert.interaction_ids),
        "release": (alert.release_id or "")[7:19],
    }


@contextmanager
def _opened() -> Iterator[tuple[Settings, EventLog, Store]]:
    from store.opening import open_store
    from streams.opening import open_log

    settings = load_settings()
    log = open_log(settings)
    try:
        store = open_store(settings, log)
        try:
            yield settings, log, store
        finally:
            store.close()
    finally:
        log.close()
