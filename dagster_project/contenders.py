"""The contenders of a release: the small base, the base with its adapter, and the writer that is the default."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dagster_project.promotion import DEFAULT_CONTENDER
from infra.artifacts import Manifest
from infra.llm.opening import open_chat
from retrieval.opening import open_answerer
from retrieval.release_default import default_release
from store.releases import Release
from streams.events import EVALUATION_CHANNEL
from streams.protocols import Answerer, AnswerRequest
from training.comparison import adapted, compare
from training.dataset import heldout_instructions

if TYPE_CHECKING:
    from dagster_project.resources import Wiring

COMPARED = 4
COMPARED_TOKENS = 200
ACTOR = "dagster"


def compare_all(
    wiring: "Wiring",
    adapter_id: str,
    requests: Sequence[str],
    *,
    max_tokens: int,
    on_progress: Callable[[int, int, str], None],
) -> Manifest:
    """Compare base, base with adapter, and writer on the same requests (kind "comparison").

    Without requests, held-out instructions of the adapter's own dataset are asked. The answers are recorded on the
    evaluation channel, so that they never count as users' traffic.
    """
    from monitoring.pairwise import PairwiseLlmJudge

    adapter = wiring.store.artifacts.get("adapter", adapter_id)
    questions = requests or heldout_instructions(wiring.store.artifacts, adapter.inputs["dataset"], limit=COMPARED)
    releases = candidate_releases(wiring, adapter)
    return compare(
        {name: answerer(wiring, release) for name, release in releases.items()},
        [compared(one, max_tokens) for one in questions],
        releases={name: release.id for name, release in releases.items()},
        default=DEFAULT_CONTENDER,
        judge=wiring.local_judge,
        artifacts=wiring.store.artifacts,
        pairwise=PairwiseLlmJudge(open_chat(wiring.settings.judge, wiring.settings.models)),
        adapters={"base + adapter": adapted(adapter, base="base")},
        recorded=wiring.store.interactions.get,
        on_progress=on_progress,
    )


def compared(question: str, max_tokens: int = COMPARED_TOKENS) -> AnswerRequest:
    """A question as contenders get it."""
    return AnswerRequest(question=question, channel=EVALUATION_CHANNEL, max_tokens=max_tokens)


def candidate_releases(wiring: "Wiring", adapter: Manifest) -> dict[str, Release]:
    """One release per contender, recorded in the registry; the default comes first."""
    base_model = str(adapter.inputs["base"]["name"])
    default = default_release(
        wiring.settings, wiring.store, build=wiring.pipeline.build, judge=wiring.local_judge.id, actor=ACTOR
    )
    releases = {
        DEFAULT_CONTENDER: default,
        "base": default.model_copy(update={"model": base_model}),
        "base + adapter": default.model_copy(update={"model": base_model, "adapter": adapter.id}),
    }
    return {name: wiring.store.releases.put(release) for name, release in releases.items()}


def answerer(wiring: "Wiring", release: Release) -> Answerer:
    """What answers as a release says, over this installation's index."""
    return open_answerer(wiring.settings, wiring.store, release, retriever=wiring.retriever, emitter=wiring.emitter)
