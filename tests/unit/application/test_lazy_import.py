"""`import quillstream` loads nothing that it does not need, and says so when another package is in its way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import quillstream

HEAVY = ["torch", "dagster", "kafka", "sqlalchemy", "openai", "fastapi", "pydantic", "transformers"]


def run(code: str, **keywords) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, **keywords
    )


def test_the_import_loads_nothing_heavy():
    unwanted = [*HEAVY, "importlib.metadata", "streams", "infra"]
    outcome = run(f"import sys, quillstream; print([name for name in {unwanted!r} if name in sys.modules])")
    assert outcome.stdout.strip() == "[]", outcome.stderr


def test_what_records_needs_no_database_and_no_model():
    unwanted = [name for name in HEAVY if name != "pydantic"]
    code = (
        "import sys, quillstream; quillstream.wrap, quillstream.emit, quillstream.feedback;"
        f"print([name for name in {unwanted!r} if name in sys.modules])"
    )
    assert run(code).stdout.strip() == "[]"


def test_every_name_is_the_object_of_its_room():
    assert len(quillstream.__all__) > 40
    assert dir(quillstream) == sorted(quillstream.__all__)
    for name in set(quillstream.__all__) - {"__version__", "prompts"}:
        found = getattr(quillstream, name)
        assert getattr(sys.modules[quillstream._MODULES[name]], name) is found
    assert quillstream.prompts.__name__ == "store.prompt_client"


def test_an_unknown_name_is_an_attribute_error():
    outcome = run("import quillstream\ntry: quillstream.nothing\nexcept AttributeError as error: print(error)")
    assert "'nothing'" in outcome.stdout


@pytest.mark.parametrize(("room", "use"), [("streams", "emit"), ("store", "prompts"), ("infra", "Settings")])
@pytest.mark.parametrize("imported", [False, True], ids=["in the path", "imported before"])
def test_a_foreign_package_with_the_name_of_a_room_is_named_with_both_paths(
    tmp_path: Path, room: str, use: str, imported: bool
):
    foreign = tmp_path / room
    foreign.mkdir()
    (foreign / "__init__.py").write_text("" if imported else "raise SystemExit('foreign code ran')\n")
    first = f"import {room}\n" if imported else ""
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{first}import quillstream\nquillstream.{use}"
    outcome = run(code, cwd=tmp_path)
    assert outcome.returncode == 1
    assert "ImportError" in outcome.stderr
    assert str(foreign) in outcome.stderr
    assert str(Path(quillstream.__file__).parent.parent / room) in outcome.stderr
