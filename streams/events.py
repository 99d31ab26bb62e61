"""The contract: every fact that travels, as frozen values in a CloudEvents envelope.

The JSON of these models is the wire form; field names of language-model facts follow the OpenTelemetry
GenAI semantic conventions where one exists (given in the field's description). Raise `schema_version` of a payload
with every change of its fields, because readers refuse what they do not know, and teach `codec.py` to read the old one.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, get_args

from pydantic import AwareDatetime, Field

from infra.identity import Value, new_id
from infra.llm.chat import Decoding, Message

CONTENT_DOCUMENTS = "content.documents"
LLM_INTAKE = "llm.intake"
LLM_INTERACTIONS = "llm.interactions"
LLM_EVALUATIONS = "llm.evaluations"
LLM_FEEDBACK = "llm.feedback"
OPS_ALERTS = "ops.alerts"
OPS_RELEASES = "ops.releases"
TOPICS = (CONTENT_DOCUMENTS, LLM_INTAKE, LLM_INTERACTIONS, LLM_EVALUATIONS, LLM_FEEDBACK, OPS_ALERTS, OPS_RELEASES)
COMPACTED = frozenset({CONTENT_DOCUMENTS, OPS_RELEASES})
UNMASKED = frozenset({LLM_INTAKE, f"{LLM_INTAKE}.dlq"})
"""Topics with text as strangers sent it: restricted, and kept for `UNMASKED_HOURS` only."""
UNMASKED_HOURS = 24
OPEN_TOPICS = tuple(topic for topic in TOPICS if topic not in UNMASKED)
"""Topics that every part of the platform may use."""
INTAKE_TYPES = ("llm.interaction.recorded", "llm.feedback.given")
"""What strangers may send to `llm.intake`; it goes on, masked, to the topic of its type."""

EVALUATION_CHANNEL = "evaluation"
"""Channel of our own comparisons and replays: stored and judged, never watched as users' traffic."""

Criterion = Literal["relevance", "coherence", "conciseness", "faithfulness"]
CRITERIA: tuple[Criterion, ...] = ("relevance", "coherence", "conciseness")


def now() -> datetime:
    """The current time, UTC, with microseconds."""
    return datetime.now(UTC)


# --- content.documents ------------------------------------------------------------------------------------


class DocumentUpserted(Value):
    """One source document, whole, as it is now."""

    type: Literal["content.document.upserted"] = "content.document.upserted"
    schema_version: Literal[1] = 1
    document_id: str = Field(description="Stable id within the installation; the partition key.")
    source: str = Field(description="Where a person finds it: path, URL or `package:NAME`.")
    title: str = Field(description="Title; the file name when the document has none.")
    text: str = Field(description="The text, with Markdown structure where the source had structure.")
    content_hash: str = Field(description="`sha256:…` of text and metadata; equal means unchanged.")
    metadata: dict[str, Any] = Field(default_factory=dict, description="author, date, tags, url … as the source gives.")


class DocumentDeleted(Value):
    """A tombstone: the document is gone from its source."""

    type: Literal["content.document.deleted"] = "content.document.deleted"
    schema_version: Literal[1] = 1
    document_id: str = Field(description="Id of the document that is gone.")
    source: str = Field(description="Where it was.")


# --- llm.interactions -------------------------------------------------------------------------------------


class Usage(Value):
    """Tokens of one call."""

    input_tokens: int = Field(0, ge=0, description="gen_ai.usage.input_tokens")
    output_tokens: int = Field(0, ge=0, description="gen_ai.usage.output_tokens")


class ReleaseRef(Value):
    """What answered: everything a response depends on."""

    release_id: str = Field(description="`sha256:…` of the release.")
    prompt: str = Field(description="gen_ai.prompt.name with its version, `name@number`.")
    model: str = Field(description="gen_ai.request.model")
    adapter: str | None = Field(None, description="Adapter id `sha256:…`; None is the plain model.")
    index_build: str | None = Field(None, description="Index build id `sha256:…`; None when nothing was retrieved.")
    index_position: dict[str, int] = Field(
        default_factory=dict, description="Partition of content.documents to the next offset the index had applied."
    )
    judge: str = Field("", description="Judge that gates and monitors the release, `name@version`.")
    decoding: Decoding = Field(default_factory=Decoding, description="Decoding settings.")


class ChunkRef(Value):
    """A retrieved chunk by reference."""

    chunk_id: str = Field(description="Chunk id `sha256:…`.")
    document_id: str = Field(description="Its document.")
    score: float = Field(description="Retrieval score; higher is better, scale depends on the search mode.")


class Citation(Value):
    """A sentence of a response and the chunk that supports it."""

    marker: int = Field(ge=1, description="Number shown in the text as [n].")
    chunk_id: str = Field(description="Chunk that supports the sentence; one of the retrieved.")
    source: str = Field(description="Source of the chunk's document.")
    quote: str = Field(description="Words of the chunk, verbatim, that support the sentence.")
    sentence: str = Field(description="The supported sentence, without its marker.")
    support: float = Field(ge=0, le=1, description="How well the quote supports the sentence.")


class ToolCall(Value):
    """A tool that the model called."""

    name: str = Field(description="gen_ai.tool.name")
    arguments: str = Field("", description="gen_ai.tool.call.arguments as text, mostly JSON.")
    result: str | None = Field(None, description="gen_ai.tool.call.result as text; None when it was not recorded.")


class TraceSpan(Value):
    """One step of the work behind a response, as its application traced it."""

    span_id: str = Field(description="OpenTelemetry span id, 16 hex digits; unique within the interaction.")
    parent_id: str | None = Field(None, description="Span id of the step it was part of; None at the top.")
    name: str = Field(description="Span name, such as 'chat gpt-4o'.")
    kind: str = Field("", description="gen_ai.operation.name, such as chat or execute_tool; else the span's kind.")
    start: AwareDatetime = Field(description="When it began, UTC.")
    end: AwareDatetime = Field(description="When it ended, UTC.")
    attributes: dict[str, str] = Field(default_factory=dict, description="Its attributes; what is no text as JSON.")


class InteractionRecorded(Value):
    """One prompt and its response."""

    type: Literal["llm.interaction.recorded"] = "llm.interaction.recorded"
    schema_version: Literal[2] = 2
    interaction_id: str = Field(description="gen_ai.response.id; evaluations and feedback refer to it.")
    conversation_id: str = Field(description="gen_ai.conversation.id; the partition key.")
    session_id: str | None = Field(None, description="session.id: conversations of one person at one sitting.")
    application: str = Field("quillstream", description="service.name of who called.")
    channel: str = Field("production", description="Release channel that answered.")
    prompt: str = Field(description="gen_ai.input.messages, the last user message, without retrieved context.")
    messages: tuple[Message, ...] = Field((), description="gen_ai.input.messages before it, oldest first.")
    response: str = Field(description="gen_ai.output.messages; partial when cancelled.")
    finish_reason: Literal["stop", "length", "refused", "cancelled", "error"] = Field(
        description="gen_ai.response.finish_reasons; 'refused' means not in the sources."
    )
    error: str | None = Field(None, description="error.type and message when finish_reason is 'error'.")
    release: ReleaseRef | None = Field(None, description="What answered; None for foreign applications.")
    chunks: tuple[ChunkRef, ...] = Field((), description="gen_ai.retrieval.documents in the context, best first.")
    context: tuple[str, ...] = Field((), description="Texts of those chunks, same order, for judging.")
    citations: tuple[Citation, ...] = Field((), description="Checked citations.")
    unsupported: tuple[str, ...] = Field((), description="Sentences that no retrieved chunk supports.")
    tool_calls: tuple[ToolCall, ...] = Field((), description="Tools that were called, in order.")
    spans: tuple[TraceSpan, ...] = Field((), description="Steps of the work, parents before their children.")
    usage: Usage = Field(default_factory=Usage, description="Tokens.")
    latency_ms: float = Field(0.0, ge=0, description="From request to last token, milliseconds.")
    tags: dict[str, str] = Field(default_factory=dict, description="Free labels; slices may use them.")


# --- llm.evaluations --------------------------------------------------------------------------------------


class Verdict(Value):
    """A judged criterion."""

    kind: Literal["verdict"] = "verdict"
    criterion: Criterion = Field(description="gen_ai.evaluation.name")
    score: float = Field(ge=1, le=5, description="gen_ai.evaluation.score.value, 1 (bad) to 5 (good).")
    justification: str = Field(description="gen_ai.evaluation.explanation, one sentence.")


class Unscored(Value):
    """A criterion the judge could not judge. It says nothing about the answer."""

    kind: Literal["unscored"] = "unscored"
    criterion: Criterion = Field(description="gen_ai.evaluation.name of what could not be judged.")
    reason: str = Field(description="Why not.")


Score = Annotated[Verdict | Unscored, Field(discriminator="kind")]


class EvaluationRecorded(Value):
    """What one judge said of one interaction."""

    type: Literal["llm.evaluation.recorded"] = "llm.evaluation.recorded"
    schema_version: Literal[1] = 1
    interaction_id: str = Field(description="The judged interaction; the partition key.")
    judge: str = Field(description="`name@version` of the judge.")
    judge_model: str = Field("", description="Model behind the judge; empty when there is none.")
    same_model_as_writer: bool = Field(False, description="The judge's model also wrote the response.")
    scores: tuple[Score, ...] = Field(description="One verdict or Unscored per criterion.")
    sampled_with: float = Field(1.0, gt=0, le=1, description="Probability with which this interaction was chosen.")
    latency_ms: float = Field(0.0, ge=0, description="Time the judge took, milliseconds.")


# --- llm.feedback -----------------------------------------------------------------------------------------


class FeedbackGiven(Value):
    """What a person said of one interaction."""

    type: Literal["llm.feedback.given"] = "llm.feedback.given"
    schema_version: Literal[1] = 1
    interaction_id: str = Field(description="The rated interaction; the partition key.")
    reviewer: str = Field("", description="Who rated; empty means anonymous.")
    ratings: dict[Criterion, float] = Field(default_factory=dict, description="Criterion to 1..5.")
    edited_response: str | None = Field(None, description="The response as the person would have it.")
    preferred_over: str | None = Field(None, description="Interaction id this one was preferred to.")
    comment: str = Field("", description="Free text.")


# --- ops.alerts -------------------------------------------------------------------------------------------


class Slice(Value):
    """A part of the traffic: all interactions whose field has the value."""

    field: str = Field(description="What the interactions share, such as 'topic', 'prompt' or 'finish_reason'.")
    value: str = Field(description="The shared value.")
    share: float = Field(ge=0, le=1, description="Share of the alert's interactions in this slice.")
    reference_share: float = Field(ge=0, le=1, description="Share of the reference in this slice.")


class AlertChanged(Value):
    """An alert as it is now; the newest of an alert id wins."""

    type: Literal["ops.alert.changed"] = "ops.alert.changed"
    schema_version: Literal[1] = 1
    alert_id: str = Field(description="Stable over the life of one alert.")
    alert_key: str = Field(description="Detector and stream, such as 'embedding-drift:prompt'; the partition key.")
    state: Literal["open", "resolved"] = Field(description="Open until the stream is back or a person resolves it.")
    severity: Literal["warning", "critical"] = Field("warning", description="How bad.")
    title: str = Field(description="One sentence for a person.")
    detector: str = Field(description="Name of the detector with its settings.")
    statistic: float = Field(description="The detector's value when the alert changed.")
    threshold: float = Field(description="The value it had to pass.")
    release_id: str | None = Field(None, description="Release that answered most of the evidence.")
    interaction_ids: tuple[str, ...] = Field(description="The evidence, most telling first.")
    slices: tuple[Slice, ...] = Field((), description="What the evidence shares, most explaining first.")
    opened_at: datetime = Field(description="When it opened, UTC.")
    note: str = Field("", description="Why it changed last.")


# --- ops.releases -----------------------------------------------------------------------------------------


class ReleaseChanged(Value):
    """A channel now serves another release."""

    type: Literal["ops.release.changed"] = "ops.release.changed"
    schema_version: Literal[1] = 1
    channel: str = Field(description="Release channel; the partition key.")
    release_id: str = Field(description="Release that now serves the channel.")
    previous: str | None = Field(None, description="Release that served it before.")
    action: Literal["promoted", "rolled_back"] = Field(description="What happened.")
    reason: str = Field(description="Why.")
    actor: str = Field(description="Who or what did it.")


Payload = Annotated[
    DocumentUpserted
    | DocumentDeleted
    | InteractionRecorded
    | EvaluationRecorded
    | FeedbackGiven
    | AlertChanged
    | ReleaseChanged,
    Field(discriminator="type"),
]


class Event(Value):
    """CloudEvents 1.0 envelope around one payload. `type` and `schema_version` stand in the payload."""

    id: str = Field(default_factory=new_id, description="CloudEvents id; effects are idempotent by it.")
    source: str = Field("quillstream", description="CloudEvents source: the process or application that speaks.")
    time: datetime = Field(default_factory=now, description="CloudEvents time: when it happened, UTC.")
    data: Payload = Field(description="The fact.")


def topic_of(payload: Payload) -> str:
    """The topic a payload travels on."""
    return TOPIC_BY_TYPE[payload.type]


def key_of(payload: Payload) -> str:
    """The partition key of a payload: events with one key keep their order."""
    return str(getattr(payload, KEY_BY_TOPIC[topic_of(payload)]))


def text_size(payload: object) -> int:
    """About how many characters of text a payload holds; 0 for what is none."""
    if type(payload) is InteractionRecorded and not (
        payload.context or payload.messages or payload.spans or payload.tool_calls
    ):
        return len(payload.prompt) + len(payload.response)  # what comes most, in a third of the time
    size = 0
    for value in getattr(payload, "__dict__", {}).values():
        if type(value) is str:
            size += len(value)
        elif value and type(value) is tuple:
            size += sum(len(each) if type(each) is str else text_size(each) for each in value)
    return size


MODELS: dict[str, type[Value]] = {model.model_fields["type"].default: model for model in get_args(get_args(Payload)[0])}
"""Type of a payload to its model."""
TOPIC_BY_TYPE: dict[str, str] = {
    "content.document.upserted": CONTENT_DOCUMENTS,
    "content.document.deleted": CONTENT_DOCUMENTS,
    "llm.interaction.recorded": LLM_INTERACTIONS,
    "llm.evaluation.recorded": LLM_EVALUATIONS,
    "llm.feedback.given": LLM_FEEDBACK,
    "ops.alert.changed": OPS_ALERTS,
    "ops.release.changed": OPS_RELEASES,
}
"""Type of a payload to its topic."""
KEY_BY_TOPIC: dict[str, str] = {
    CONTENT_DOCUMENTS: "document_id",
    LLM_INTERACTIONS: "conversation_id",
    LLM_EVALUATIONS: "interaction_id",
    LLM_FEEDBACK: "interaction_id",
    OPS_ALERTS: "alert_key",
    OPS_RELEASES: "channel",
}
"""Topic to the field of its payloads that is the partition key."""
