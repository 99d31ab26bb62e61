"""What this installation offers to whoever asks: the values that cross the wire, and the platform behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import Field

from infra.identity import Value
from streams.emitter import Receipt
from streams.events import Payload, ReleaseRef, Usage
from streams.protocols import Answer, AnswerRequest, SearchResult

if TYPE_CHECKING:
    from store.releases import Release

CHANNEL = "production"
MAX_HITS = 50
MAX_QUESTION = 8_000

Text = Annotated[str, Field(min_length=1, max_length=MAX_QUESTION, pattern=r"\S")]


class SearchRequest(Value):
    """A question to the index."""

    question: Text = Field(description="What is looked for; at most 8,000 characters.")
    limit: int = Field(8, ge=1, le=MAX_HITS, description="Most chunks to return, 1 to 50.")


class Hit(Value):
    """A chunk found for a question."""

    chunk_id: str = Field(description="Chunk id `sha256:…`.")
    document_id: str = Field(description="Its document.")
    source: str = Field(description="Where a person finds the document.")
    score: float = Field(description="Higher is better; scale depends on the search mode.")
    text: str = Field(description="The chunk, verbatim.")


class WriteRequest(Value):
    """A request for grounded text."""

    question: Text = Field(description="What to write about; at most 8,000 characters.")
    channel: str = Field(CHANNEL, description="Release channel that answers.")
    max_tokens: int | None = Field(None, ge=1, description="Lower than the release's, or none.")
    conversation_id: str = Field("", description="Empty: a conversation of its own.")
    interaction_id: str = Field("", description="Empty: a new one. Given: the caller's idempotency key.")


class Cited(Value):
    """What a [n] marker of the text stands for."""

    chunk_id: str = Field(description="Chunk that supports the sentence.")
    source: str = Field(description="Where a person finds its document.")
    quote: str = Field(description="Words of the chunk, verbatim.")


class Passage(Value):
    """A chunk that the writer was given."""

    chunk_id: str = Field(description="Chunk id `sha256:…`.")
    text: str = Field(description="The chunk, verbatim.")


class Written(Value):
    """Grounded text as `quill write --json` prints it."""

    interaction_id: str = Field(description="Id under which it was recorded.")
    text: str = Field(description="The text with [n] markers.")
    citations: tuple[Cited, ...] = Field(description="One per marker, in order; each quote stands in its chunk.")
    chunks: tuple[Passage, ...] = Field(description="What the writer was given, best first.")
    release: ReleaseRef = Field(description="What answered.")
    usage: Usage = Field(description="Tokens.")
    latency_ms: float = Field(description="Milliseconds from request to last token.")


class Part(Value):
    """One part of the installation and how it is."""

    state: Literal["ok", "waiting", "failed", "off"] = Field(description="'waiting' becomes ok without help.")
    detail: dict[str, Any] = Field(default_factory=dict, description="Figures, or the problem.")


class Health(Value):
    """How the installation is."""

    status: Literal["ok", "degraded", "failed"] = Field(description="'failed': it can neither search nor record.")
    version: str = Field(description="Version of Quillstream.")
    pid: int = Field(description="Process that answers.")
    home: str = Field(description="The installation it serves.")
    parts: dict[str, Part] = Field(description="log, store, index, llm, features, monitor, intake.")


class IndexState(Value):
    """Which index answers and how far it is."""

    build: str = Field(description="Index build id `sha256:…`.")
    position: dict[str, int] = Field(description="Partition of content.documents to the next offset to apply.")
    end: dict[str, int] = Field(description="Partition of content.documents to the next offset to be written.")
    documents: int = Field(description="Documents in the feature store.")
    chunks: int = Field(description="Chunks in the feature store.")


class Platform(Protocol):
    """What the routes need of the installation. Everything here may be called from several threads."""

    def search(self, question: str, limit: int) -> SearchResult:
        """The most relevant chunks, best first."""
        ...

    def answer(self, request: AnswerRequest, on_text: Callable[[str], None] | None = None) -> Answer:
        """Grounded text through the release that serves the request's channel, recorded on the stream.

        Raises `NotFound` when nothing is promoted on the channel and `Unavailable` when the model does not answer.
        """
        ...

    def channels(self) -> Mapping[str, Release]:
        """Channel to the release that serves it; the default channel comes first."""
        ...

    def emit(self, payload: Payload, event_id: str | None = None) -> Receipt:
        """Put a fact on the stream, masked. Never waits and never raises; the receipt tells when it is durable."""
        ...

    def health(self) -> Health:
        """How each part is, asked now."""
        ...

    def index(self) -> IndexState:
        """Build and position of the index."""
        ...


def hits(result: SearchResult) -> list[Hit]:
    """A search result as it is shown."""
    return [
        Hit(
            chunk_id=chunk.chunk_id,
            document_id=chunk.document_id,
            source=chunk.source,
            score=round(chunk.score, 6),
            text=chunk.text,
        )
        for chunk in result.chunks
    ]


def written(answer: Answer) -> Written:
    """An answer as it is shown."""
    return Written(
        interaction_id=answer.interaction_id,
        text=answer.text,
        citations=tuple(Cited(chunk_id=one.chunk_id, source=one.source, quote=one.quote) for one in answer.citations),
        chunks=tuple(Passage(chunk_id=chunk.chunk_id, text=chunk.text) for chunk in answer.chunks),
        release=answer.release,
        usage=answer.usage,
        latency_ms=round(answer.latency_ms, 1),
    )


def to_answer_request(request: WriteRequest) -> AnswerRequest:
    """What the answerer is asked."""
    return AnswerRequest(
        question=request.question.strip(),
        channel=request.channel,
        max_tokens=request.max_tokens,
        conversation_id=request.conversation_id,
        interaction_id=request.interaction_id,
    )
