"""The code location loads with an empty environment and shows the graph of the architecture."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import json
from dagster_project.definitions import defs
graph = defs.resolve_asset_graph()
print(json.dumps({
    "assets": {key.to_user_string(): sorted(parent.to_user_string() for parent in graph.get(key).parent_keys)
               for key in graph.get_all_asset_keys()},
    "checks": sorted(key.name for key in graph.asset_check_keys),
    "sensors": sorted(sensor.name for sensor in defs.sensors or []),
}))
"""


def test_definitions_load_with_an_empty_environment():
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env={}, capture_output=True, text=True, timeout=180, check=False
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["assets"] == {
        "documents": [],
        "features": ["documents"],
        "instruct_dataset": ["features"],
        "adapter": ["instruct_dataset"],
        "evaluation_report": ["adapter"],
        "release": ["evaluation_report"],
    }
    assert found["checks"] == [
        "documents_were_accepted",
        "index_holds_every_chunk",
        "no_document_on_both_sides",
        "production_answers_with_this_release",
        "served_is_what_was_trained",
    ]
    assert found["sensors"] == ["content_documents_sensor", "ops_alerts_sensor"]
