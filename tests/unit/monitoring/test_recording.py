"""Verdicts are written down once, sampled by id, and never asked for where there is nothing to judge."""

from __future__ import annotations

import pytest

from infra.embedder import HashEmbedder
from infra.llm.scripted import ScriptedChat
from monitoring.llm_judge import LlmJudge
from monitoring.local_judge import LocalJudge
from monitoring.recording import Recorder, chosen_with
from monitoring.rubric import RUBRIC_NAME, rubric_messages
from store.opening import open_store
from store.prompts import PromptVersion
from streams.codec import decode
from streams.embedded import EmbeddedLog
from streams.events import LLM_EVALUATIONS, Event, InteractionRecorded, ReleaseRef, Unscored


@pytest.fixture
def log(settings):
    opened = EmbeddedLog(settings.home / "log.db", partitions=1)
    opened.ensure_topics([LLM_EVALUATIONS])
    yield opened
    opened.close()


@pytest.fixture
def store(settings):
    opened = open_store(settings)
    yield opened
    opened.close()


def interaction(name="i1", **fields):
    defaults = {"prompt": "What is LoRA?", "response": "It trains two small matrices.", "finish_reason": "stop"}
    return InteractionRecorded(interaction_id=name, conversation_id=name, **(defaults | fields))


def test_one_verdict_per_judge_on_the_stream_and_in_the_store(log, store):
    recorder, judge = Recorder(log, store), LocalJudge(HashEmbedder())
    store.interactions.put(Event(data=interaction()))
    assert recorder.judge(interaction(), judge, probability=1.0)
    assert not recorder.judge(interaction(), judge, probability=1.0)
    records = log.read(LLM_EVALUATIONS, 0, 0)
    assert len(records) == 1
    (stored,) = store.interactions.evaluations(["i1"])
    streamed = decode(records[0]).data
    assert sorted(streamed.scores, key=str) == sorted(stored.scores, key=str)
    assert streamed.judge == stored.judge
    assert stored.judge == judge.id
    assert stored.sampled_with == 1.0


def test_a_repeated_verdict_has_the_event_id_of_the_first(log, store, settings):
    judge = LocalJudge(HashEmbedder())
    Recorder(log, store).judge(interaction(), judge, probability=1.0)
    other = open_store(settings.model_copy(update={"home": settings.home / "other"}))
    Recorder(log, other).judge(interaction(), judge, probability=1.0)
    other.close()
    first, second = (decode(record) for record in log.read(LLM_EVALUATIONS, 0, 0))
    assert first.id == second.id


@pytest.mark.parametrize(("reason", "said"), [("error", "failed"), ("cancelled", "cancelled"), ("refused", "refused")])
def test_what_was_not_answered_is_unscored_without_asking(log, store, reason, said):
    chat = ScriptedChat([])
    rubric = PromptVersion(name=RUBRIC_NAME, number=1, messages=rubric_messages(), variables=("output", "query"))
    Recorder(log, store).judge(interaction(finish_reason=reason), LlmJudge(chat, rubric), probability=0.5)
    (stored,) = store.interactions.evaluations(["i1"])
    assert all(isinstance(score, Unscored) and said in score.reason for score in stored.scores)
    assert chat.calls == []


def test_the_report_knows_when_a_model_judged_itself(log, store):
    rubric = PromptVersion(name=RUBRIC_NAME, number=1, messages=rubric_messages(), variables=("output", "query"))
    judge = LlmJudge(ScriptedChat(["no verdict"] * 2, model="qwen"), rubric)
    release = ReleaseRef(release_id="sha256:" + "a" * 64, prompt="p@1", model="qwen")
    Recorder(log, store).judge(interaction(release=release), judge, probability=0.1)
    Recorder(log, store).judge(interaction("i2"), judge, probability=0.1)
    first, second = store.interactions.evaluations(["i1", "i2"])
    assert first.same_model_as_writer
    assert not second.same_model_as_writer
    assert first.sampled_with == 0.1


def test_sampling_is_a_function_of_the_id():
    chosen = [chosen_with(interaction(f"i{number}"), 0.3) for number in range(2000)]
    assert set(chosen) == {0.0, 0.3}
    assert 500 < sum(one > 0 for one in chosen) < 700
    assert chosen == [chosen_with(interaction(f"i{number}"), 0.3) for number in range(2000)]
    assert chosen_with(interaction(tags={"judge": "always"}), 0.0) == 1.0
    assert chosen_with(interaction(), 0.0) == 0.0
    assert chosen_with(interaction(), 1.0) == 1.0
