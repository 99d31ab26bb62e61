"""From a comparison to what production serves."""

from typing import TYPE_CHECKING, Any

from infra.artifacts import Manifest
from monitoring.drift import make_reference
from training.dataset import instruction_texts

if TYPE_CHECKING:
    from dagster_project.resources import Wiring

DEFAULT_CONTENDER = "writer"
ACTOR = "dagster"


def promote_winner(wiring: "Wiring", comparison: Manifest, *, channel: str) -> dict[str, Any]:
    """Promote the comparison's winner to a channel; a channel that serves it already is left alone.

    The reason recorded with the promotion is the comparison's verdict, so the history explains itself.
    """
    releases = wiring.store.releases
    winner, verdict = str(comparison.summary["winner"]), str(comparison.summary["verdict"])
    wanted = releases.get(str(comparison.inputs["releases"][winner]))
    current = releases.current(channel)
    reference = watch_reference(wiring, comparison)
    if current is None or current.id != wanted.id:
        releases.promote(channel, wanted.id, reason=verdict, actor=ACTOR)
    return {
        "kind": "release",
        "id": wanted.id,
        "contender": winner,
        "reason": verdict,
        "promoted": current is None or current.id != wanted.id,
        "drift_reference": reference.id,
        "previous": current.id if current else "",
        **wanted.model_dump(mode="json"),
    }


def watch_reference(wiring: "Wiring", comparison: Manifest) -> Manifest:
    """The drift reference of a release: the instructions of the dataset that its comparison's adapter was made of."""
    store = wiring.store
    candidates = [store.releases.get(str(release_id)) for release_id in comparison.inputs["releases"].values()]
    adapter = next(candidate.adapter for candidate in candidates if candidate.adapter)
    dataset = str(store.artifacts.get("adapter", adapter).inputs["dataset"])
    return make_reference(
        store.artifacts, instruction_texts(store.artifacts, dataset), wiring.embedder, name="instructions"
    )
