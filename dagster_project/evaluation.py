"""`quill evaluate RELEASE|ADAPTER`: what is known of one, from the store and the registry."""

from typing import Any

from dagster_project.resources import Wiring, described
from infra.artifacts import Manifest
from infra.errors import NotFound
from infra.settings import Settings


def evaluate_target(settings: Settings, target: str) -> dict[str, Any]:
    """The evaluation report of a release, or the losses and proof of an adapter.

    Raises `NotFound` when the id, or the beginning of one, names neither.
    """
    from monitoring.evaluation import report

    wiring = Wiring(settings)
    try:
        adapter = adapter_starting_with(wiring, target)
        if adapter is not None:
            return described(adapter)
        return described(report(wiring.store, release_id=wiring.store.releases.get(target).id))
    finally:
        wiring.close()


def adapter_starting_with(wiring: Wiring, target: str) -> Manifest | None:
    """The adapter with this id or beginning of one; None when there is none, `NotFound` when there are several."""
    wanted = target if target.startswith("sha256:") else f"sha256:{target}"
    found = [manifest for manifest in wiring.store.artifacts.list("adapter") if manifest.id.startswith(wanted)]
    if len(found) > 1:
        raise NotFound("more than one adapter begins like this", seen=target, fix="give more of the id")
    return found[0] if found else None
