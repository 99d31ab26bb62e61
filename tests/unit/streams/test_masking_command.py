"""`quill mask`: JSON lines in, JSON lines out, as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from infra.errors import InputError
from streams.commands import masked_lines

PROBE = """
import sys
from infra.cli import main
try:
    main(["mask"])
finally:
    sys.stderr.write(f"torch: {'torch' in sys.modules}")
"""


def run(given: bytes, tmp_path) -> subprocess.CompletedProcess[bytes]:
    environment = {"QUILL_HOME": str(tmp_path), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, "-c", PROBE],
        input=given, env=environment, cwd=tmp_path, capture_output=True, timeout=120, check=False,
    )  # fmt: skip


def test_each_line_is_masked_with_offsets_into_the_original(tmp_path):
    texts = ["é ada@example.org and 10.0.0.1", "nothing", "half a pair: \ud800"]
    given = "\n\n".join(json.dumps({"text": text, "id": 1}) for text in texts).encode()
    outcome = run(given, tmp_path)
    assert outcome.returncode == 0
    rows = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert rows == [
        {
            "text": "é [EMAIL] and [IP]",
            "spans": [{"type": "EMAIL", "start": 2, "end": 17}, {"type": "IP", "start": 22, "end": 30}],
        },
        {"text": "nothing", "spans": []},
        {"text": "half a pair: \ud800", "spans": []},
    ]
    assert outcome.stderr == b"torch: False"


def test_a_bad_line_is_named_and_what_stood_before_it_is_written(tmp_path):
    outcome = run(b'{"text": "a"}\n{"text": "ada@example.org"\n{"text": "b"}\n', tmp_path)
    assert outcome.returncode == 2
    assert outcome.stdout == b'{"text": "a", "spans": []}\n'
    assert outcome.stderr.startswith(b"quill: line 2 is not JSON")
    assert b"Traceback" not in outcome.stderr
    assert b"ada@" not in outcome.stderr


@pytest.mark.parametrize("line", [b"[]", b"1", b'{"text": 1}', b"{}", b"\xff", b"[" * 100_000, b"9" * 5000, b"nan"])
def test_lines_that_are_no_text_are_refused_with_their_number(line: bytes):
    lines = masked_lines([b'{"text": ""}', line])
    assert next(lines) == b'{"text": "", "spans": []}\n'
    with pytest.raises(InputError, match="line 2"):
        next(lines)


def test_a_line_is_answered_before_the_next_is_read():
    def given():
        yield b'{"text": "one"}\n'
        raise AssertionError("the second line was read first")

    assert json.loads(next(masked_lines(given())))["text"] == "one"
