"""`docs/sources.md` says what is true: its kinds, names, options and limits are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import typer.main

from infra.cli import build_app
from retrieval.docx import MAX_UNPACKED
from retrieval.extraction import DOCX, HTML, MARKDOWN, PDF, RST, SUFFIXES, TEXT
from retrieval.fetching import MAX_REDIRECTS, TOTAL_SECONDS
from retrieval.ingestion import Ingested
from retrieval.near_duplicates import SAME
from retrieval.sources import MAX_BYTES
from retrieval.sources_exports import EXPORTS, ID_NAMES, TEXT_NAMES
from retrieval.sources_git import SCHEMES, is_repository
from retrieval.sources_web import MAX_PAGES
from retrieval.webpage import MOST_TAGS

TEXT_OF_PAGE = (Path(__file__).resolve().parents[2] / "docs" / "sources.md").read_text()


def test_every_kind_of_file_is_named() -> None:
    assert SUFFIXES == MARKDOWN | HTML | RST | TEXT | PDF | DOCX
    missing = [suffix for suffix in SUFFIXES | EXPORTS if not re.search(rf"{re.escape(suffix)}\b", TEXT_OF_PAGE)]
    assert len(SUFFIXES | EXPORTS) >= 13
    assert missing == []


def test_the_options_and_the_report_are_those_of_the_verb() -> None:
    command = typer.main.get_command(build_app()).commands["ingest"]  # type: ignore[attr-defined]
    options = {name for option in command.params if option.name != "help" for name in option.opts if name[:2] == "--"}
    assert options == {"--no-wait", "--watch", "--every", "--json"}
    assert [option for option in options if option not in TEXT_OF_PAGE] == []
    for name in ("added", "changed", "removed", "unchanged", "folded", "failed", "skipped"):
        assert name in Ingested.model_fields
        assert f"`{name}`" in TEXT_OF_PAGE


def test_rows_are_read_by_the_names_given() -> None:
    names = ["text", "content", "body", "markdown", "html", "code"]
    keys = ["id", "_id", "uuid", "slug", "url", "link", "path"]
    assert set(names) <= set(TEXT_NAMES)
    assert set(keys) <= set(ID_NAMES)
    assert [name for name in names + keys if f"`{name}`" not in TEXT_OF_PAGE] == []


def test_the_limits_are_those_of_the_code() -> None:
    said = (
        f"above {MAX_BYTES // 1_000_000} MB",
        f"than {MOST_TAGS:,} tags",
        f"than {MAX_UNPACKED // 1_000_000} MB",
        f"than {MAX_PAGES:,} pages",
        f"than {MAX_REDIRECTS} redirects",
        f"than {TOTAL_SECONDS:.0f} s",
        f"{SAME:.0%}".replace("%", " %"),
    )
    flat = " ".join(TEXT_OF_PAGE.split())
    assert [limit for limit in said if limit not in flat] == []
    assert f"over {', '.join(SCHEMES[:-1])} and {SCHEMES[-1]}" in flat


def test_what_is_shown_as_a_repository_is_one() -> None:
    shown = re.findall(r"`(https://github[^`]+|git@[^`]+|git\+https[^`]+|git\+PATH)`", TEXT_OF_PAGE)
    assert len(shown) == 4
    assert [one for one in shown if not is_repository(one)] == []
