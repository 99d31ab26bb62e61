"""The room boundaries of the architecture hold, and the check has looked at every module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = (
    "infra",
    "streams",
    "store",
    "retrieval",
    "training",
    "monitoring",
    "serving",
    "dagster_project",
    "quillstream",
)
OWNERS = {
    "kafka": "streams/kafka_client.py",
    "qdrant_client": "retrieval/index/qdrant.py",
    "qdrant_edge": "retrieval/index/edge.py",
    "openai": "infra/llm/endpoint.py",
    "comet_ml": "monitoring/comet.py",
    "xllamacpp": "infra/llm/llamacpp.py",
}


def product_files() -> list[Path]:
    return [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]


def test_import_linter_keeps_the_rooms_apart_and_saw_every_module():
    linter = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout
    assert "8 kept, 0 broken" in run.stdout


def test_the_import_graph_that_import_linter_builds_holds_every_module():
    graph = grimp.build_graph(*ROOMS, cache_dir=None)
    modules = {module for module in graph.modules if module.split(".")[0] in ROOMS}
    assert len(modules) == len(product_files()) > 100


@pytest.mark.parametrize("package", sorted(OWNERS))
def test_each_third_party_client_is_imported_by_exactly_one_file(package: str):
    importers = [
        str(file.relative_to(ROOT))
        for file in product_files()
        if any(_imports(line, package) for line in file.read_text().splitlines())
    ]
    assert importers == [OWNERS[package]]


def _imports(line: str, package: str) -> bool:
    words = line.split()
    return len(words) > 1 and words[0] in ("import", "from") and words[1].split(".")[0] == package
