"""What an application imports. Nothing is loaded before it is used: the import itself takes milliseconds.

`wrap(client)` records the calls of an `openai` client, `emit` puts a fact on the stream, `feedback` what a
person says of an answer, `prompts.get` reads a prompt. The values and protocols behind them stand beside them.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infra.errors import Conflict, CorruptArtifact, InputError, NotFound, QuillError, SettingsError, Unavailable
    from infra.llm.chat import ChatModel, Completion, Decoding, Message
    from infra.settings import Settings, load_settings
    from store import prompt_client as prompts
    from streams.client import emit, feedback, wrap
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
        ToolCall,
        TraceSpan,
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

    __version__: str

_PLACES = {
    "infra.errors": "Conflict CorruptArtifact InputError NotFound QuillError SettingsError Unavailable",
    "infra.llm.chat": "ChatModel Completion Decoding Message",
    "infra.settings": "Settings load_settings",
    "streams.client": "emit feedback wrap",
    "streams.emitter": "Emitter Receipt",
    "streams.events": (
        "AlertChanged Citation DocumentDeleted DocumentUpserted EvaluationRecorded Event FeedbackGiven "
        "InteractionRecorded ReleaseChanged ReleaseRef ToolCall TraceSpan Unscored Usage Verdict"
    ),
    "streams.log": "EventLog Record StoredRecord",
    "streams.masking": "Masked Masker",
    "streams.opening": "open_emitter open_log",
    "streams.protocols": (
        "Answer AnswerRequest Answerer Judge JudgeInput Judgement RetrievedChunk Retriever SearchResult"
    ),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names.split()}
_ROOMS = ("infra", "store", "streams")

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
    "ToolCall",
    "TraceSpan",
    "Unavailable",
    "Unscored",
    "Usage",
    "Verdict",
    "__version__",
    "emit",
    "feedback",
    "load_settings",
    "open_emitter",
    "open_log",
    "prompts",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("quillstream")  # it takes ten times as long as all the rest
    if name == "prompts":
        _check_rooms()
        return import_module("store.prompt_client")
    if name not in _MODULES:
        raise AttributeError(f"module 'quillstream' has no attribute {name!r}")
    _check_rooms()
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


@cache
def _check_rooms() -> None:
    """Raise `ImportError` when a package of the application's hides one of ours: their names are common words."""
    ours = Path(__file__).resolve().parent.parent
    for room in _ROOMS:
        spec = find_spec(room)
        places = [] if spec is None else list(spec.submodule_search_locations or [spec.origin or "a built-in module"])
        if str(ours / room) not in {str(Path(place).resolve()) for place in places}:
            raise ImportError(
                f"quillstream needs its package {room!r} at {ours / room}, but Python finds {places or 'none'}; "
                f"rename the other one, or put {ours} before it in the import path"
            )
