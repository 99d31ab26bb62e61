"""What the demo made, read back from the stores: the same facts feed the closing table and the HTML report."""

from pathlib import Path
from typing import Any

from dagster_project.demo import BUDGETS, Demo
from dagster_project.recorded import latest_id
from dagster_project.resources import CHANNEL
from infra.identity import short
from monitoring.drift import load_reference, newest_reference, wealth_trace
from monitoring.watch import ALPHA


def gather(demo: Demo) -> dict[str, Any]:
    """Everything the report shows, as plain values."""
    store = demo.wiring.store
    artifacts = store.artifacts
    comparison_id = latest_id(demo.instance, "evaluation_report", kind="comparison")
    release = store.releases.resolve(CHANNEL)
    return {
        "counts": store.documents.counts(),
        "dataset": artifacts.get("dataset", latest_id(demo.instance, "instruct_dataset")).summary,
        "adapter": artifacts.get("adapter", latest_id(demo.instance, "adapter")).summary,
        "comparison": artifacts.get("comparison", comparison_id).summary,
        "release": {**release.model_dump(mode="json"), "id": release.id},
        "posts": [_post(demo, post_id) for post_id in demo.post_ids],
        "means": [mean.model_dump(mode="json") for mean in store.interactions.means(ids=demo.post_ids)],
        "burst": _burst(demo),
        "drift": drift_trace(demo),
        "alerts": [_alert(demo, alert) for alert in store.alerts.list()],
        "seconds": [
            {"stage": stage, "seconds": round(seconds, 1), "budget": BUDGETS.get(stage, 0)}
            for stage, seconds in demo.seconds.items()
        ],
        "total_seconds": round(sum(demo.seconds.values()), 1),
        "comet": demo.comet,
        "home": str(demo.settings.home),
        "corpus": demo.corpus or "built-in notes and package descriptions",
    }


def closing_rows(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The closing table: a name and a value each."""
    adapter, dataset = facts["adapter"], facts["dataset"]
    rows = [
        ("documents / chunks", f"{facts['counts']['documents']} / {facts['counts']['chunks']}"),
        ("dataset rows (train + held out)", f"{dataset['rows']} + {dataset['heldout']}"),
        (
            "adapter held-out loss before → after",
            f"{adapter['heldout_loss_before']:.3f} → {adapter['heldout_loss_after']:.3f}",
        ),
        ("adapter proof |Δlogprob|", _proof_line(adapter["proof"])),
        ("comparison", facts["comparison"]["verdict"]),
        ("release in production", f"{short(facts['release']['id'])} ({facts['release']['model']})"),
        ("posts with checked citations", f"{len(facts['posts'])}, {_citations(facts['posts'])} citations"),
    ]
    rows += [(f"{mean['criterion']} by {_judge(mean)}", mean_line(mean)) for mean in facts["means"]]
    rows += [
        ("off-topic burst", f"{facts['burst']['sent']} prompts, {facts['burst']['refused']} refused"),
        ("alerts", "; ".join(f"{alert['title']} [{alert['state']}]" for alert in facts["alerts"]) or "none"),
        ("Comet", facts["comet"]),
        ("seconds", f"{facts['total_seconds']:.0f}"),
    ]
    return [{"what": name, "value": value} for name, value in rows]


def mean_line(mean: dict[str, Any]) -> str:
    """`4.1 [3.8, 4.4], 6 of 6 judged`; the share is part of every mean."""
    share = f"{mean['judged']} of {mean['total']} judged"
    if mean["mean"] is None:
        return f"no verdict, {share}"
    return f"{mean['mean']:.2f} [{mean['low']:.2f}, {mean['high']:.2f}], {share}"


def _judge(mean: dict[str, Any]) -> str:
    return str(mean["judge"]).partition("@")[0].partition(":")[0]


def _proof_line(proof: dict[str, Any]) -> str:
    outcome = "served is what was trained" if proof["matches"] and proof["discriminates"] else "NOT proven"
    return (
        f"{proof['delta']:.3f} ≤ {proof['tolerance']:.3f} ({outcome}; without adapter {proof['base_delta']:.3f}, "
        f"double scale {proof['double_delta']:.3f}, swapped layers {proof['swapped_delta']:.3f})"
    )


def _citations(posts: list[dict[str, Any]]) -> int:
    return sum(len(post["citations"]) for post in posts)


def _post(demo: Demo, post_id: str) -> dict[str, Any]:
    store = demo.wiring.store
    interaction = store.interactions.get(post_id)
    if interaction is None:
        return {"prompt": post_id, "response": "", "citations": [], "unsupported": [], "scores": [], "latency_ms": 0}
    scores = [
        {"judge": evaluation.judge, "same_model": evaluation.same_model_as_writer, **score.model_dump(mode="json")}
        for evaluation in store.interactions.evaluations([post_id])
        for score in evaluation.scores
    ]
    citations = [
        {**citation.model_dump(mode="json"), "source": _shown(citation.source)} for citation in interaction.citations
    ]
    return {**interaction.model_dump(mode="json"), "citations": citations, "scores": scores}


def _shown(source: str) -> str:
    """A source as a person reads it: a file below the working directory without that directory."""
    return source.removeprefix(f"{Path.cwd()}/")


def _burst(demo: Demo) -> dict[str, Any]:
    found = [one for _, one in demo.wiring.store.interactions.list(ids=demo.burst_ids)]
    return {"sent": len(found), "refused": sum(one.finish_reason == "refused" for one in found)}


def drift_trace(demo: Demo) -> dict[str, Any]:
    """The drift detector's wealth over posts and burst, for the chart."""
    manifest = newest_reference(demo.wiring.store.artifacts)
    if manifest is None:
        return {"wealth": [], "threshold": 1 / ALPHA}
    reference = load_reference(demo.wiring.store.artifacts, manifest)
    found = demo.wiring.store.interactions.list(ids=demo.post_ids + demo.burst_ids)
    prompts = {interaction.interaction_id: interaction.prompt for _, interaction in found}
    return {"wealth": wealth_trace(reference, prompts, demo.wiring.embedder), "threshold": 1 / ALPHA}


def _alert(demo: Demo, alert: Any) -> dict[str, Any]:
    prompts = [
        interaction.prompt
        for _, interaction in demo.wiring.store.interactions.list(ids=list(alert.interaction_ids[:5]))
    ]
    return {**alert.model_dump(mode="json"), "examples": prompts}
