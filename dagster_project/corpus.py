"""The demo's documents: real text that is on every machine that runs it, or a folder the user names."""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from infra.errors import InputError
from retrieval.sources import Rejected, SourceDocument, installed_packages, read_path

NOTES = Path(__file__).resolve().parents[1] / "examples" / "notes"
FIRST_PACKAGES = (
    "quillstream",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "sentence-transformers",
    "qdrant-client",
    "kafka-python",
    "dagster",
    "openai",
    "comet-ml",
    "xllamacpp",
    "gguf",
    "safetensors",
    "datasketch",
    "huggingface-hub",
    "tokenizers",
    "accelerate",
    "scikit-learn",
    "numpy",
    "pyarrow",
    "sqlalchemy",
    "pydantic",
    "fastapi",
    "httpx",
)
MAX_PACKAGES = 40
MAX_CHARACTERS = 600_000
"""About 1,000 chunks, which MiniLM embeds in under a minute on two cores."""
LEFT_OUT = "left out: the demo takes about 1,000 chunks; quill ingest takes everything"


def read_corpus(corpus: str) -> tuple[Iterable[SourceDocument | Rejected], str]:
    """The documents of a folder or file, as far as the demo's budget goes, and their scope; empty names the built-in
    corpus.

    Raises `InputError` when the path does not exist.
    """
    if not corpus:
        documents = chain(read_path(NOTES), installed_packages(FIRST_PACKAGES, limit=MAX_PACKAGES))
        return documents, "built-in"
    path = Path(corpus).expanduser().resolve()
    if not path.exists():
        raise InputError("there is no such corpus", seen=corpus, fix="give a folder or file that exists")
    return within_budget(read_path(path)), str(path)


def within_budget(documents: Iterable[SourceDocument | Rejected]) -> Iterator[SourceDocument | Rejected]:
    """The documents as they come while they fit `MAX_CHARACTERS`; those that do not fit, rejected with the reason."""
    left = MAX_CHARACTERS
    for document in documents:
        if isinstance(document, SourceDocument) and len(document.text) > left:
            yield Rejected(source=document.source, reason=LEFT_OUT)
            continue
        left -= len(document.text) if isinstance(document, SourceDocument) else 0
        yield document
