"""One event of each payload type with every field set, and their records as files in `tests/data/events`.

A file holds the headers one a line, the key first, then an empty line and the value. Write the missing ones with
`python tests/golden_events.py`; a file that is there is never written again, because records like it lie in logs.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from infra.llm.chat import Decoding, Message
from streams.codec import VERSIONS, encode
from streams.events import (
    AlertChanged,
    ChunkRef,
    Citation,
    DocumentDeleted,
    DocumentUpserted,
    EvaluationRecorded,
    Event,
    FeedbackGiven,
    InteractionRecorded,
    Payload,
    ReleaseChanged,
    ReleaseRef,
    Slice,
    ToolCall,
    TraceSpan,
    Unscored,
    Usage,
    Verdict,
)
from streams.log import Record

FOLDER = Path(__file__).parent / "data" / "events"
TIME = datetime(2025, 3, 4, 5, 6, 7, 89, tzinfo=UTC)
INTERACTION = InteractionRecorded(
    interaction_id="0195600000007000800000000000000a",
    conversation_id="conversation-7",
    session_id="session-3",
    application="editor",
    channel="production",
    prompt="Was ist LoRA? 🦙",
    messages=(Message(role="system", content="Be brief."), Message(role="user", content="Hi\n\nthere")),
    response="Two small matrices beside a frozen one. [1] It is cheap.",
    finish_reason="error",
    error="Unavailable: the endpoint went away",
    release=ReleaseRef(
        release_id="sha256:" + "1" * 64,
        prompt="post@3",
        model="qwen2.5-coder-0.5b-instruct",
        adapter="sha256:" + "2" * 64,
        index_build="sha256:" + "3" * 64,
        index_position={"0": 12, "1": 0},
        judge="local@2",
        decoding=Decoding(temperature=0.7, top_p=0.9, max_tokens=200, seed=1, repeat_penalty=1.1, stop=("\n\n",)),
    ),
    chunks=(ChunkRef(chunk_id="sha256:" + "4" * 64, document_id="lora.md", score=0.75),),
    context=("LoRA trains two small matrices beside a frozen one.",),
    citations=(
        Citation(
            marker=1,
            chunk_id="sha256:" + "4" * 64,
            source="notes/lora.md",
            quote="two small matrices",
            sentence="Two small matrices beside a frozen one.",
            support=0.9,
        ),
    ),
    unsupported=("It is cheap.",),
    tool_calls=(ToolCall(name="lookup", arguments='{"term": "LoRA"}', result="two matrices"), ToolCall(name="clock")),
    spans=(
        TraceSpan(
            span_id="00f067aa0ba902b7",
            name="invoke_agent editor",
            kind="invoke_agent",
            start=TIME,
            end=TIME + timedelta(milliseconds=800),
            attributes={"gen_ai.agent.name": "editor", "gen_ai.usage.input_tokens": "120"},
        ),
        TraceSpan(
            span_id="00f067aa0ba902b8",
            parent_id="00f067aa0ba902b7",
            name="execute_tool lookup",
            kind="execute_tool",
            start=TIME + timedelta(milliseconds=1),
            end=TIME + timedelta(milliseconds=9),
        ),
    ),
    usage=Usage(input_tokens=120, output_tokens=14),
    latency_ms=812.5,
    tags={"topic": "adapters"},
)
PAYLOADS: tuple[Payload, ...] = (
    DocumentUpserted(
        document_id="lora.md",
        source="notes/lora.md",
        title="LoRA",
        text="# LoRA\n\nTwo small matrices — frozen beside.\n",
        content_hash="sha256:" + "5" * 64,
        metadata={"author": "Ada", "tags": ["adapters"], "pages": 2, "url": None},
    ),
    DocumentDeleted(document_id="lora.md", source="notes/lora.md"),
    INTERACTION,
    EvaluationRecorded(
        interaction_id=INTERACTION.interaction_id,
        judge="local@2",
        judge_model="all-minilm-l6-v2",
        same_model_as_writer=True,
        scores=(
            Verdict(criterion="relevance", score=4.5, justification="It says what LoRA is."),
            Unscored(criterion="faithfulness", reason="nothing was retrieved"),
        ),
        sampled_with=0.25,
        latency_ms=3.5,
    ),
    FeedbackGiven(
        interaction_id=INTERACTION.interaction_id,
        reviewer="ada",
        ratings={"relevance": 5, "coherence": 3.5},
        edited_response="Two small matrices beside a frozen one. [1]",
        preferred_over="0195600000007000800000000000000b",
        comment="too long",
    ),
    AlertChanged(
        alert_id="alert-1",
        alert_key="embedding-drift:prompt",
        state="resolved",
        severity="critical",
        title="Prompts moved away from the reference",
        detector="embedding-drift(window=200)",
        statistic=0.31,
        threshold=0.25,
        release_id="sha256:" + "1" * 64,
        interaction_ids=(INTERACTION.interaction_id,),
        slices=(Slice(field="topic", value="cooking", share=0.8, reference_share=0.01),),
        opened_at=TIME,
        note="back to the reference",
    ),
    ReleaseChanged(
        channel="production",
        release_id="sha256:" + "1" * 64,
        previous="sha256:" + "6" * 64,
        action="rolled_back",
        reason="relevance fell",
        actor="ada",
    ),
)
EVENTS = {
    payload.type: Event(id=f"event-{number}", source="tests/ü", time=TIME, data=payload)
    for number, payload in enumerate(PAYLOADS)
}


def golden_file(name: str, version: int) -> Path:
    """The file of a version of a payload type."""
    return FOLDER / f"{name}.{version}.event"


def read_golden(file: Path) -> Record:
    """The record in a file."""
    head, value = file.read_bytes().removesuffix(b"\n").split(b"\n\n", 1)
    (_, key), *headers = [line.split(b": ", 1) for line in head.split(b"\n")]
    return Record(key=key.decode(), value=value, headers=tuple((name.decode(), text) for name, text in headers))


def write_missing() -> None:
    """Write the current version of each type that has no file yet."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, event in EVENTS.items():
        file = golden_file(name, VERSIONS[name])
        if not file.exists():
            record = encode(event)
            lines = [
                b"key: " + record.key.encode(),
                *(b": ".join((each.encode(), text)) for each, text in record.headers),
            ]
            file.write_bytes(b"\n".join(lines) + b"\n\n" + record.value + b"\n")


if __name__ == "__main__":
    write_missing()
