"""Reading a collection in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv (Thakur et al., "BEIR", 2021)."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from infra.errors import InputError, NotFound
from retrieval.sources import SourceDocument


class Beir:
    """A collection in a folder. Nothing is read before it is asked for; the judgements last."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def documents(self) -> Iterator[SourceDocument]:
        """The corpus. A document without text is its title. Raises `NotFound` and `InputError`."""
        for row in self._rows("corpus.jsonl"):
            title, text = str(row.get("title") or ""), str(row.get("text") or "")
            yield SourceDocument(source=self.source(str(row["_id"])), title=title, text=text or title)

    def source(self, document: str) -> str:
        """Where a document of the corpus stands."""
        return f"{self.folder / 'corpus.jsonl'}#{document}"

    def queries(self) -> dict[str, str]:
        """Query id to its text."""
        return {str(row["_id"]): str(row.get("text") or "") for row in self._rows("queries.jsonl")}

    def judgements(self, split: str) -> dict[str, dict[str, int]]:
        """Query id to the relevance of its judged documents; 0 is judged and irrelevant."""
        file = self._file(f"qrels/{split}.tsv")
        found: dict[str, dict[str, int]] = {}
        with file.open(newline="") as lines:
            for number, row in enumerate(csv.reader(lines, delimiter="\t"), start=1):
                if number == 1 and not row[-1].lstrip("-").isdigit():
                    continue
                if len(row) < 3 or not row[-1].lstrip("-").isdigit():
                    rule = "query-id, corpus-id and score, separated by tabs"
                    raise InputError(f"line {number} of {file} is no judgement", seen=row, rule=rule)
                found.setdefault(row[0], {})[row[-2]] = int(row[-1])
        return found

    def _rows(self, name: str) -> Iterator[Mapping[str, Any]]:
        file = self._file(name)
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _row(file, number, line)

    def _file(self, name: str) -> Path:
        file = self.folder / name
        if not file.is_file():
            rule = "corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv in one folder"
            raise NotFound("this is no collection in BEIR's layout", seen=file, rule=rule)
        return file


def _row(file: Path, number: int, line: bytes) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"line {number} of {file} is not JSON", rule=str(error)) from error
    if not isinstance(row, dict) or "_id" not in row:
        raise InputError(f"line {number} of {file} has no _id", seen=line[:80], rule='{"_id": …, "text": …}')
    return row
