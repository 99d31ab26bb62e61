"""Help and listing verbs answer at once: what costs seconds to import stays out of them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ["torch", "sentence_transformers", "peft", "dagster", "transformers", "comet_ml", "sklearn", "matplotlib"]
PROBE = f"""
import json, sys
from infra.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    code = end.code or 0
print("\\n" + json.dumps({{"code": code, "heavy": [name for name in {HEAVY!r} if name in sys.modules]}}))
"""


def loaded(arguments: list[str], home) -> dict:
    run = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        env={"QUILL_HOME": str(home), "PATH": "/usr/bin:/bin", "HOME": str(home)},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1]) | {"output": run.stdout}


@pytest.mark.parametrize(
    "verb",
    [
        "--help",
        "search --help",
        "write --help",
        "up --help",
        "ingest --help",
        "doctor --help",
        "demo --help",
        "evaluate --help",
        "train --help",
        "prompts list --json",
        "release list --json",
        "dataset list --json",
        "alerts list --json",
        "dlq --help",
        "dlq list --json",
        "replay --help",
        "replay list --json",
    ],
)
def test_help_and_listings_import_nothing_heavy(verb: str, tmp_path):
    outcome = loaded(verb.split(), tmp_path)
    assert outcome["code"] == 0
    assert outcome["heavy"] == []
    if "--json" in verb:
        assert outcome["output"].startswith("[]")


def test_the_public_package_is_light():
    heavy = [*HEAVY, "fastapi", "sqlalchemy", "openai", "kafka"]
    code = f"import sys, quillstream; print([name for name in {heavy!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "[]"
