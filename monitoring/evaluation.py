"""The evaluation report: how an affected release and slice were judged, against the rest of the same release."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from infra.artifacts import Manifest, write_atomic
from infra.errors import InputError
from infra.identity import canonical_json, content_id, short
from monitoring.alerts import find
from monitoring.slices import in_slice
from store.opening import Store
from streams.events import AlertChanged, EvaluationRecorded, InteractionRecorded, Slice, Verdict

KIND = "report"
WORST = 10
MOST = 2000
Rows = list[tuple[datetime, InteractionRecorded]]


def report(store: Store, *, release_id: str | None = None, alert_id: str | None = None) -> Manifest:
    """Make, or find, the report of an alert, of a release, or of everything.

    The artifact holds `report.json`: counts, means per judge with the share judged and intervals, the worst examples,
    and for an alert its evidence and first slice against the rest of the same release. Its identity comes from the
    alert (id, state, evidence) or else from the release and the interactions and verdicts it covers, so the same
    facts make one report. At most the newest 2,000 interactions are read. Raises `NotFound` for an unknown alert and
    `InputError` when nothing was recorded.
    """
    alert = find(store, alert_id) if alert_id is not None else None
    release_id = alert.release_id if alert is not None else release_id
    rows = store.interactions.list(release_id=release_id, limit=MOST)
    evidence = store.interactions.list(ids=list(alert.interaction_ids)) if alert is not None else []
    if not rows and not evidence:
        fix = "write something first: quill write"
        raise InputError("there is no interaction to report on", seen=release_id or "any release", fix=fix)
    inputs = _inputs(store, alert, release_id, rows)
    return store.artifacts.build(
        KIND, content_id(KIND, inputs), inputs, _fill(store, alert, release_id, rows, evidence)
    )


def _inputs(store: Store, alert: AlertChanged | None, release_id: str | None, rows: Rows) -> dict[str, Any]:
    if alert is not None:
        ids = sorted(alert.interaction_ids)
        return {"alert": alert.alert_id, "state": alert.state, "evidence": ids, "release": release_id}
    ids = sorted(interaction.interaction_id for _, interaction in rows)
    judged = sorted((one.interaction_id, one.judge) for one in store.interactions.evaluations(ids))
    return {"release": release_id, "interactions": content_id("ids", [ids, judged])}


def _fill(
    store: Store, alert: AlertChanged | None, release_id: str | None, rows: Rows, evidence: Rows
) -> Callable[[Path], dict[str, Any]]:
    def fill(directory: Path) -> dict[str, Any]:
        found = _body(store, alert, release_id, rows, evidence)
        write_atomic(directory / "report.json", canonical_json(found))
        affected = found["affected"]
        return {
            "alert": alert.alert_id if alert else None,
            "release": release_id,
            "interactions": found["whole"]["interactions"],
            "affected": affected["interactions"] if affected else 0,
            "slice": found["slice"],
            "means": (affected or found["whole"])["means"],
        }

    return fill


def _body(
    store: Store, alert: AlertChanged | None, release_id: str | None, rows: Rows, evidence: Rows
) -> dict[str, Any]:
    ids = {interaction.interaction_id for _, interaction in evidence}
    shared = alert.slices[0] if alert is not None and alert.slices else None
    affected = evidence + [row for row in rows if row[1].interaction_id not in ids and _within(row[1], shared)]
    touched = {interaction.interaction_id for _, interaction in affected}
    rest = [row for row in rows if row[1].interaction_id not in touched]
    whole = affected + rest
    return {
        "alert": alert.model_dump(mode="json") if alert else None,
        "release": _release(store, release_id),
        "slice": f"{shared.field}={shared.value}" if shared else None,
        "whole": _part(store, whole),
        "affected": _part(store, affected) if alert else None,
        "rest": _part(store, rest) if alert else None,
        "evidence": [_example(store, interaction) for _, interaction in evidence],
        "worst": _worst(store, [interaction for _, interaction in (affected if alert else whole)]),
    }


def _within(interaction: InteractionRecorded, shared: Slice | None) -> bool:
    return shared is not None and in_slice(interaction, shared)


def _part(store: Store, rows: Rows) -> dict[str, Any]:
    ids = [interaction.interaction_id for _, interaction in rows]
    reasons: dict[str, int] = {}
    for _, interaction in rows:
        reasons[interaction.finish_reason] = reasons.get(interaction.finish_reason, 0) + 1
    return {
        "interactions": len(ids),
        "first": min(time for time, _ in rows).isoformat() if rows else None,
        "last": max(time for time, _ in rows).isoformat() if rows else None,
        "finish_reasons": reasons,
        "means": [mean.model_dump(mode="json") for mean in store.interactions.means(ids=ids)] if ids else [],
    }


def _worst(store: Store, interactions: Sequence[InteractionRecorded]) -> list[dict[str, Any]]:
    """The lowest mean scores first; answers without any verdict are left out."""
    scored = []
    by_id = _verdicts(store.interactions.evaluations([one.interaction_id for one in interactions]))
    for interaction in interactions:
        scores = [verdict.score for verdict in by_id.get(interaction.interaction_id, [])]
        if scores:
            scored.append((fmean(scores), interaction.interaction_id, interaction))
    scored.sort(key=lambda row: row[:2])
    return [_example(store, interaction) for _, _, interaction in scored[:WORST]]


def _example(store: Store, interaction: InteractionRecorded) -> dict[str, Any]:
    evaluations = store.interactions.evaluations([interaction.interaction_id])
    return {
        "interaction_id": interaction.interaction_id,
        "prompt": interaction.prompt,
        "response": interaction.response,
        "finish_reason": interaction.finish_reason,
        "scores": [
            {"judge": evaluation.judge, **score.model_dump(mode="json")}
            for evaluation in evaluations
            for score in evaluation.scores
        ],
    }


def _verdicts(evaluations: Sequence[EvaluationRecorded]) -> dict[str, list[Verdict]]:
    found: dict[str, list[Verdict]] = {}
    for evaluation in evaluations:
        for score in evaluation.scores:
            if isinstance(score, Verdict):
                found.setdefault(evaluation.interaction_id, []).append(score)
    return found


def _release(store: Store, release_id: str | None) -> dict[str, Any] | None:
    if release_id is None:
        return None
    known = [release for release in store.releases.list() if release.id == release_id]
    return {"id": release_id, "short": short(release_id), **(known[0].model_dump(mode="json") if known else {})}
