"""The demo: the product's main job on real text, by materializing the same assets that `dagster dev` shows.

Every stage is content-addressed or idempotent by id, so a second run reuses what is unchanged and an
interrupted run goes on where it stopped.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_project.contenders import answerer as open_release
from dagster_project.contenders import compared
from dagster_project.defs import assets, checks
from dagster_project.defs.sensors import alert_runs
from dagster_project.progress import report
from dagster_project.recorded import latest_id
from dagster_project.resources import CHANNEL, QuillResource, Wiring, home_of, sharing
from infra.identity import content_id, short
from infra.settings import Settings
from monitoring.comet import CometSink
from monitoring.opening import open_llm_judge, open_monitor
from monitoring.recording import Recorder
from store.releases import Release
from streams.events import LLM_INTERACTIONS
from streams.protocols import AnswerRequest
from training.comparison import interaction_id as compared_id

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
BURST_APPLICATION = "recipe-bot"
MAX_BURST_TOKENS = 40

BUDGETS = {
    "documents": 5,
    "features": 45,
    "instruct_dataset": 5,
    "adapter": 180,
    "evaluation_report": 275,
    "release": 5,
    "posts": 60,
    "judging": 105,
    "burst": 25,
    "alert run": 5,
    "comet": 5,
    "report": 5,
}
"""Seconds each stage may take on two cores the first time; shown beside the time it took."""


INSTANCE = """\
telemetry:
  enabled: false
compute_logs:  # capturing a step's output would take the terminal away from the progress bars
  module: dagster._core.storage.noop_compute_log_manager
  class: NoOpComputeLogManager
"""


@dataclass
class Demo:
    """One run: where it works, what it asks, and what it found so far."""

    settings: Settings
    wiring: Wiring
    instance: dg.DagsterInstance
    corpus: str
    seconds: dict[str, float] = field(default_factory=dict)
    post_ids: list[str] = field(default_factory=list)
    burst_ids: list[str] = field(default_factory=list)
    alert_report_ids: list[str] = field(default_factory=list)
    comet: str = ""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and show it as running until the block ends."""
        began = time.monotonic()
        report(name)
        yield
        self.seconds[name] = time.monotonic() - began
        report(name, 1, 1)


def run(demo: Demo) -> None:
    """All stages in order; what they made is in the stores, what they took is in `demo.seconds`."""
    with sharing(demo.wiring):
        run_stages(demo)


def run_stages(demo: Demo) -> None:
    """The stages, on the wiring that assets and demo share."""
    materialize_assets(demo)
    with demo.stage("posts"):
        judge_stream(demo)  # what an interrupted run left on the stream is stored before anything is asked again
        write_posts(demo)
    with demo.stage("judging"):
        judge_stream(demo)
        judge_posts(demo)
    with demo.stage("burst"):
        send_burst(demo)
        judge_stream(demo)
    with demo.stage("alert run"):
        demo.alert_report_ids = run_what_the_alert_sensor_requests(demo)
    with demo.stage("comet"):
        demo.comet = log_to_comet(demo)


def materialize_assets(demo: Demo) -> None:
    """Materialize the graph, asset by asset so that each one's time is known, with its checks."""
    questions = comparison_requests(demo)
    configs: dict[str, dict[str, Any]] = {
        "documents": {"corpus": demo.corpus},
        "evaluation_report": {"requests": questions},
    }
    for asset in ordered_assets():
        name = asset.key.to_user_string()
        with demo.stage(name):
            config = {"ops": {name: {"config": configs[name]}}} if name in configs else {}
            materialize(demo, asset, config)


def materialize(
    demo: Demo, asset: dg.AssetsDefinition, run_config: dict[str, Any], tags: dict[str, str] | None = None
) -> None:
    """One in-process run of one asset and its checks, on the installation's Dagster instance."""
    dg.materialize(
        [*ordered_assets(), *all_checks()],
        selection=dg.AssetSelection.assets(asset.key),
        instance=demo.instance,
        resources={"quill": QuillResource()},
        run_config={**run_config, "loggers": {"console": {"config": {"log_level": "ERROR"}}}},
        tags=tags,
    )


def ordered_assets() -> list[dg.AssetsDefinition]:
    """The graph in the order of its arrows."""
    return [
        assets.documents,
        assets.features,
        assets.instruct_dataset,
        assets.adapter,
        assets.evaluation_report,
        assets.release,
    ]


def all_checks() -> list[dg.AssetChecksDefinition]:
    """Every asset check of the code location."""
    return [value for value in vars(checks).values() if isinstance(value, dg.AssetChecksDefinition)]


def requests_of(demo: Demo) -> list[str]:
    """The questions of the demo: the project's list for the built-in corpus; otherwise the first of it and
    instructions of held-out documents, which the corpus itself suggests."""
    listed = (EXAMPLES / "requests.txt").read_text().splitlines()
    if not demo.corpus:
        return listed
    from training.dataset import heldout_instructions

    dataset = latest_id(demo.instance, "instruct_dataset")
    return [listed[0], *heldout_instructions(demo.wiring.store.artifacts, dataset, limit=len(listed) - 1)]


def comparison_requests(demo: Demo) -> list[str]:
    """The questions of the comparison: the first four; for a foreign corpus the asset derives them itself."""
    return requests_of(demo)[:4] if not demo.corpus else []


def write_posts(demo: Demo) -> None:
    """Answer every request through the production release. What that release answered before, in an earlier run or
    in the comparison, is not asked again."""
    store, release = demo.wiring.store, demo.wiring.store.releases.resolve(CHANNEL)
    questions = requests_of(demo)
    answerer = open_release(demo.wiring, release)
    for done, question in enumerate(questions, start=1):
        post_id = compared_id(release.id, compared(question))
        if store.interactions.get(post_id) is None:
            post_id = interaction_id("post", release, question)
        if store.interactions.get(post_id) is None:
            answerer.answer(AnswerRequest(question=question, interaction_id=post_id, tags={"stage": "posts"}))
        demo.post_ids.append(post_id)
        report("posts", done, len(questions))
    demo.wiring.emitter.flush(timeout=30)


def judge_posts(demo: Demo) -> None:
    """The LLM judge on the posts; a post that it judged before is not judged again."""
    store = demo.wiring.store
    judge, recorder = open_llm_judge(demo.settings, store), Recorder(demo.wiring.log, store)
    posts = store.interactions.list(ids=demo.post_ids)
    for done, (_, post) in enumerate(posts, start=1):
        recorder.judge(post, judge, probability=1.0)
        report("judging", done, len(posts))


def send_burst(demo: Demo) -> None:
    """Forty prompts of one application about something else entirely, through the same release."""
    release = demo.wiring.store.releases.resolve(CHANNEL)
    answerer = open_release(demo.wiring, release)
    prompts = (EXAMPLES / "off_topic_burst.txt").read_text().splitlines()
    for done, prompt in enumerate(prompts, start=1):
        burst_id = interaction_id("burst", release, prompt)
        demo.burst_ids.append(burst_id)
        if demo.wiring.store.interactions.get(burst_id) is None:
            answerer.answer(
                AnswerRequest(
                    question=prompt,
                    interaction_id=burst_id,
                    application=BURST_APPLICATION,
                    max_tokens=MAX_BURST_TOKENS,
                    tags={"stage": "burst"},
                )
            )
        report("burst", done, len(prompts))
    demo.wiring.emitter.flush(timeout=30)


def judge_stream(demo: Demo) -> None:
    """Let the monitoring consumer store, judge and watch everything that is on the stream now; the LLM judge sees
    the posts alone, in a stage of its own."""
    wiring = demo.wiring
    monitor = open_monitor(demo.settings, wiring.log, wiring.store, embedder=wiring.embedder, llm=False)
    targets = {LLM_INTERACTIONS: demo.wiring.log.end_offsets(LLM_INTERACTIONS)}
    monitor.run_until(targets, timeout=600)


def run_what_the_alert_sensor_requests(demo: Demo) -> list[str]:
    """One tick of the alert sensor, as the daemon does it: a run key that already ran does not run again."""
    requests, _cursor = alert_runs(QuillResource(), "")
    for request in requests:
        key = {"dagster/run_key": request.run_key or ""}
        if not demo.instance.get_runs(dg.RunsFilter(tags=key), limit=1):
            materialize(demo, assets.evaluation_report, dict(request.run_config), {**request.tags, **key})
    return [manifest.id for manifest in demo.wiring.store.artifacts.list("report")]


def log_to_comet(demo: Demo) -> str:
    """Prompts, responses, evaluations and alerts as one Comet experiment; where it lies."""
    store = demo.wiring.store
    ids = demo.post_ids + demo.burst_ids
    interactions = [interaction for _, interaction in store.interactions.list(ids=ids)]
    return CometSink(demo.settings).log(interactions, store.interactions.evaluations(ids), store.alerts.list())


def interaction_id(kind: str, release: Release, question: str) -> str:
    """The same request to the same release is the same interaction."""
    return short(content_id(f"demo-{kind}", [release.id, question]), 32)


def open_demo(settings: Settings, corpus: str) -> Demo:
    """A demo on an installation's stores; raises what opening them raises."""
    home = home_of(settings)
    home.mkdir(parents=True, exist_ok=True)
    config = home / "dagster.yaml"
    if not config.exists():
        config.write_text(INSTANCE)
    instance = dg.DagsterInstance.from_config(str(home))
    return Demo(settings=settings, wiring=Wiring(settings), instance=instance, corpus=corpus)


def start_over(settings: Settings, keep: Callable[[Path], bool] = lambda _: False) -> None:
    """Delete the installation's state (weights live elsewhere and stay)."""
    for entry in settings.home.glob("*"):
        if keep(entry):
            continue
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
