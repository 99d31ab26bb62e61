"""The README says what is true: its snippets are files, its make lines are what CI runs, its verbs exist."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
QUILL = Path(sys.executable).with_name("quill")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)


def commands(prefix: str) -> list[str]:
    """Lines of the README's shell blocks that begin with a prefix, without their comments."""
    lines = [line for language, block in BLOCKS if language == "" for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.startswith(prefix)]


def test_the_python_snippet_is_the_example_file():
    [snippet] = [block for language, block in BLOCKS if language == "python"]
    assert snippet == (ROOT / "examples" / "openai_client.py").read_text()


def test_ci_runs_the_make_lines_of_the_readme():
    lines = commands("make ")
    assert lines == ["make demo", "make test"]
    ci = (ROOT / ".ci" / "run").read_text()
    assert [line for line in lines if f"step {line}" not in ci] == []


def test_every_quill_verb_of_the_readme_exists():
    verbs = [line.split()[1:] for line in commands(".venv/bin/quill ")]
    assert len(verbs) >= 8
    for words in verbs:
        arguments = [word for word in words[:2] if re.fullmatch(r"[a-z]+", word)]
        run = subprocess.run([QUILL, *arguments, "--help"], capture_output=True, text=True, timeout=60, check=False)
        assert run.returncode == 0, words


def test_links_of_the_readme_lead_somewhere():
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target]
    assert len(targets) >= 3
    assert [target for target in targets if not (ROOT / target).exists()] == []
