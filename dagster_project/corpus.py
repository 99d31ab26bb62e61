"""The demo's documents: real text that is on every machine that runs it, or a folder the user names."""

from collections.abc import Iterable
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


def read_corpus(corpus: str) -> tuple[Iterable[SourceDocument | Rejected], str]:
    """The documents of a folder or file and their scope; empty names the built-in corpus.

    Raises `InputError` when the path does not exist.
    """
    if not corpus:
        documents = chain(read_path(NOTES), installed_packages(FIRST_PACKAGES, limit=MAX_PACKAGES))
        return documents, "built-in"
    path = Path(corpus).expanduser().resolve()
    if not path.exists():
        raise InputError("there is no such corpus", seen=corpus, fix="give a folder or file that exists")
    return read_path(path), str(path)
