"""Where rooms meet: the answerer, the retriever and the judge as protocols, and the values they exchange."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from pydantic import Field

from infra.identity import Value
from infra.llm.chat import Message
from streams.events import Citation, ReleaseRef, Score, Usage


class RetrievedChunk(Value):
    """A chunk found for a question."""

    chunk_id: str = Field(description="`sha256:…` of document id, position and text.")
    document_id: str = Field(description="Its document.")
    source: str = Field(description="Where a person finds the document.")
    title: str = Field(description="Title of the document.")
    heading: str = Field("", description="Heading path inside the document, ' > ' between levels.")
    text: str = Field(description="The chunk, verbatim.")
    score: float = Field(description="Higher is better; scale depends on the mode.")


class SearchResult(Value):
    """Chunks for a question, best first, and the state of the index that gave them."""

    chunks: tuple[RetrievedChunk, ...] = Field(description="Best first; empty means nothing relevant.")
    index_build: str = Field(description="Index build id `sha256:…`.")
    index_position: dict[str, int] = Field(description="Partition of content.documents to next offset applied.")
    best_similarity: float = Field(0.0, description="Cosine of the question and the nearest chunk, -1 to 1.")
    sufficient: bool = Field(True, description="Relevant enough to write from, not only to be shown.")


class Retriever(Protocol):
    """Question to chunks."""

    def search(self, question: str, *, limit: int = 8) -> SearchResult:
        """The most relevant chunks, best first; empty when nothing is relevant enough."""
        ...


class AnswerRequest(Value):
    """A request for grounded text."""

    question: str = Field(min_length=1, description="What is asked.")
    messages: tuple[Message, ...] = Field((), description="Earlier messages, oldest first.")
    conversation_id: str = Field("", description="Empty: a conversation of its own.")
    session_id: str = Field("", description="Conversations of one person at one sitting; empty: none is known.")
    interaction_id: str = Field("", description="Empty: a new one. Given: the caller's idempotency key.")
    application: str = Field("quillstream", description="Who asks.")
    channel: str = Field("production", description="Release channel.")
    max_tokens: int | None = Field(None, ge=1, description="Lower than the release's, or None.")
    tags: dict[str, str] = Field(default_factory=dict, description="Recorded with the interaction.")


class Answer(Value):
    """Grounded text with checked citations."""

    interaction_id: str = Field(description="Id under which it was recorded.")
    text: str = Field(description="The answer with [n] markers.")
    citations: tuple[Citation, ...] = Field(description="Each marker's chunk and quote.")
    unsupported: tuple[str, ...] = Field(description="Sentences that no chunk supports.")
    chunks: tuple[RetrievedChunk, ...] = Field(description="The context, best first.")
    refused: bool = Field(description="Nothing in the sources answers the question.")
    release: ReleaseRef = Field(description="What answered.")
    usage: Usage = Field(description="Tokens.")
    latency_ms: float = Field(description="Milliseconds from request to last token.")


class Answerer(Protocol):
    """Request to answer, recorded on the stream."""

    def answer(self, request: AnswerRequest, on_text: Callable[[str], None] | None = None) -> Answer:
        """Answer and record. `on_text` receives pieces of the raw text as they are written; when it raises,
        the interaction is recorded as cancelled and the exception goes on."""
        ...


class JudgeInput(Value):
    """What a judge sees."""

    prompt: str = Field(description="What was asked.")
    response: str = Field(description="What was answered.")
    context: tuple[str, ...] = Field((), description="Retrieved texts, best first; empty when there were none.")


class Judgement(Value):
    """What a judge says: one score per criterion."""

    judge: str = Field(description="`name@version`.")
    scores: tuple[Score, ...] = Field(description="Verdict or Unscored per criterion.")
    latency_ms: float = Field(0.0, ge=0, description="Milliseconds taken.")


class Judge(Protocol):
    """Scores responses 1 to 5 per criterion with one sentence of why."""

    @property
    def id(self) -> str:
        """`name@version`; changes whenever verdicts may change."""
        ...

    @property
    def model(self) -> str:
        """Model behind the judge; empty when there is none."""
        ...

    def judge(self, subjects: Sequence[JudgeInput]) -> list[Judgement]:
        """One judgement per subject, same order. Never raises for a subject: it is Unscored with the reason."""
        ...
