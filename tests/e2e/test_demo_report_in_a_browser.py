"""The demo's report opens in a real browser: one file, charts drawn, hostile text shown and not run."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dagster_project.demo_report import write_report

HOSTILE = "<script>document.title = 'owned'</script>"
CHROMIUM = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def facts() -> dict:
    mean = {"judge": "local-judge@1", "criterion": "relevance", "mean": 4.2, "low": 3.9, "high": 4.5}
    citation = {"marker": 1, "quote": "An index finds near vectors.", "source": "notes/index.md"}
    score = {"kind": "verdict", "criterion": "relevance", "score": 4.0, "justification": "On topic.", "judge": "j@1"}
    return {
        "counts": {"documents": 3, "chunks": 12},
        "dataset": {"rows": 20, "heldout": 4},
        "adapter": {
            "heldout_loss_before": 3.0,
            "heldout_loss_after": 2.5,
            "loss_curve": [[1, 3.1], [2, 2.9]],
            "proof": {
                "delta": 0.04,
                "tolerance": 0.15,
                "base_delta": 2.9,
                "double_delta": 1.1,
                "swapped_delta": 0.3,
                "matches": True,
                "discriminates": True,
            },
        },
        "comparison": {
            "verdict": "writer stays: every interval contains zero",
            "differences": [
                {
                    "measure": "judge",
                    "contender": "base",
                    "default": "writer",
                    "difference": -0.2,
                    "low": None,
                    "high": None,
                    "pairs": 1,
                }
            ],
        },
        "release": {"id": "sha256:" + "a" * 64, "model": "m", "adapter": None, "prompt": "grounded-post@1"},
        "posts": [
            {
                "prompt": f"Explain {HOSTILE}",
                "response": f"Vectors are near. {HOSTILE}",
                "citations": [citation],
                "unsupported": ["A claim."],
                "scores": [{**score, "same_model": True}],
            }
        ],
        "means": [{**mean, "judged": 1, "total": 1}],
        "burst": {"sent": 40, "refused": 39},
        "drift": {"wealth": [0.5, 2.0, 1500.0], "threshold": 1000.0},
        "alerts": [],
        "seconds": [{"stage": "documents", "seconds": 1.0, "budget": 20}],
        "total_seconds": 1.0,
        "comet": "archive.zip",
        "home": "home",
        "corpus": "notes",
    }


@pytest.fixture
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no Chromium on this machine")
        pytest.skip("no Chromium on this machine")
    return found


@pytest.mark.browser
@pytest.mark.timeout(120)
def test_the_report_is_one_file_that_a_browser_shows(chromium: str, tmp_path: Path):
    page = write_report(facts(), tmp_path / "report.html")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    shown = subprocess.run(
        [chromium, *CHROMIUM, profile, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    ).stdout
    assert "<title>Quillstream demo report</title>" in shown
    assert shown.count("<svg") == 4
    assert "&lt;script&gt;" in shown
    assert "An index finds near vectors." in shown
    assert "1 of 1 judged" in shown
    assert re.findall(r'(?:src|href)="https?://', shown) == []
