"""What an application imports: settings, the event contract, the log, the emitter and the protocols.

An application that writes text with its own model puts prompts and responses on the stream with an `Emitter`; one
that wants grounded text asks a running `quill up` through any OpenAI client.
"""

from importlib.metadata import version

from infra.errors import Conflict, CorruptArtifact, InputError, NotFound, QuillError, SettingsError, Unavailable
from infra.llm.chat import ChatModel, Completion, Decoding, Message
from infra.settings import Settings, load_settings
from streams.emitter import Emitter, Receipt
from streams.events import (
    AlertChanged,
    Citation,
    DocumentDeleted,
    DocumentUpserted,
    EvaluationRecorded,
    Event,
    FeedbackGiven,
    InteractionRecorded,
    ReleaseChanged,
    ReleaseRef,
    Unscored,
    Usage,
    Verdict,
)
from streams.log import EventLog, Record, StoredRecord
from streams.masking import Masked, Masker
from streams.opening import open_emitter, open_log
from streams.protocols import (
    Answer,
    Answerer,
    AnswerRequest,
    Judge,
    JudgeInput,
    Judgement,
    RetrievedChunk,
    Retriever,
    SearchResult,
)

__version__ = version("quillstream")

__all__ = [
    "AlertChanged",
    "Answer",
    "AnswerRequest",
    "Answerer",
    "ChatModel",
    "Citation",
    "Completion",
    "Conflict",
    "CorruptArtifact",
    "Decoding",
    "DocumentDeleted",
    "DocumentUpserted",
    "Emitter",
    "EvaluationRecorded",
    "Event",
    "EventLog",
    "FeedbackGiven",
    "InputError",
    "InteractionRecorded",
    "Judge",
    "JudgeInput",
    "Judgement",
    "Masked",
    "Masker",
    "Message",
    "NotFound",
    "QuillError",
    "Receipt",
    "Record",
    "ReleaseChanged",
    "ReleaseRef",
    "RetrievedChunk",
    "Retriever",
    "SearchResult",
    "Settings",
    "SettingsError",
    "StoredRecord",
    "Unavailable",
    "Unscored",
    "Usage",
    "Verdict",
    "__version__",
    "load_settings",
    "open_emitter",
    "open_log",
]
