"""`docs/intake.md` says what is true: its snippets are the example files that tests run, its verbs and names exist."""

import re
from pathlib import Path

import typer.main

from infra.cli import build_app
from serving.gateway_api import APPLICATION_HEADER, CONVERSATION_HEADER, INTERACTION_HEADER, PREFIX, SESSION_HEADER
from streams.events import INTAKE_TYPES, UNMASKED, UNMASKED_HOURS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "intake.md").read_text()


def test_each_snippet_is_an_example_and_each_example_stands_there():
    snippets = re.findall(r"\[`(examples/intake/\w+\.py)`\].*?:\n\n```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert TEXT.count("```python") == len(snippets)
    files = {str(file.relative_to(ROOT)): file.read_text() for file in (ROOT / "examples" / "intake").glob("*.py")}
    assert dict(snippets) == files
    assert len(files) == 4


def test_each_example_is_run_by_a_test():
    tests = "".join(
        (ROOT / "tests" / "integration" / name).read_text() for name in ("test_intake.py", "test_intake_topic.py")
    )
    examples = [file.name for file in (ROOT / "examples" / "intake").glob("*.py")]
    assert [name for name in examples if f'"{name}"' not in tests] == []


def test_links_lead_somewhere():
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in target]
    assert len(targets) >= 5
    assert [target for target in targets if not (ROOT / "docs" / target).exists()] == []


def test_what_it_names_exists():
    verbs = typer.main.get_command(build_app()).commands
    for words in re.findall(r"`quill (\w+) ?(\w*)", TEXT):
        assert words[0] in verbs
        assert not words[1] or words[1] in verbs[words[0]].commands
    for name in (PREFIX, INTERACTION_HEADER, APPLICATION_HEADER, *INTAKE_TYPES, *UNMASKED):
        assert f"`{name}`" in TEXT
    for header in (CONVERSATION_HEADER, SESSION_HEADER):
        assert f"`{header.removeprefix('x-quillstream')}`" in TEXT
    assert "kept for a day" in TEXT
    assert UNMASKED_HOURS == 24
