"""The whole asset graph materializes for real, with the tiny recipe, and a second time reuses everything."""

import shutil
from pathlib import Path

import dagster as dg
import pytest

from dagster_project.demo import all_checks, ordered_assets
from dagster_project.resources import QuillResource
from infra.llm.local import stop
from infra.settings import load_settings

NOTES = Path(__file__).resolve().parents[2] / "examples" / "notes"
SMALL = "smollm2-135m-instruct"
RUN_CONFIG = {
    "instruct_dataset": {"max_rows": 40},
    "adapter": {"recipe": "tiny"},
    "evaluation_report": {"requests": ["How does LoRA work?"], "max_tokens": 24},
}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    for note in sorted(NOTES.glob("*.md"))[:12]:
        shutil.copy(note, folder)
    shutil.copy(NOTES / "lora.md", folder)
    return folder


@pytest.fixture
def quill(tmp_path: Path):
    overrides = {
        "home": str(tmp_path / "home"),
        "llm.model": SMALL,
        "judge.model": SMALL,
        "models.adapter_base": SMALL,
    }
    yield QuillResource(overrides=overrides)
    stop(load_settings(environment={}).models)


@pytest.mark.small_models
@pytest.mark.timeout(300)
def test_documents_become_a_release_and_a_second_run_reuses_all_of_it(corpus: Path, quill: QuillResource):
    config = {**RUN_CONFIG, "documents": {"corpus": str(corpus)}}
    with dg.DagsterInstance.ephemeral() as instance:
        first = materialize(instance, quill, config)
        second = materialize(instance, quill, config)
        passed = {check.check_name: check.passed for check in first.get_asset_check_evaluations()}
    assert first.success
    assert second.success
    assert metadata(first, "documents")["published"] == 13
    assert metadata(second, "documents")["published"] == 0
    assert metadata(second, "documents")["unchanged"] == 13
    for asset in ("features", "instruct_dataset", "adapter", "evaluation_report", "release"):
        assert metadata(first, asset)["id"] == metadata(second, asset)["id"]
    assert len(passed) == 5
    assert passed["index_holds_every_chunk"]
    assert passed["no_document_on_both_sides"]
    assert passed["production_answers_with_this_release"]


def materialize(instance: dg.DagsterInstance, quill: QuillResource, config: dict) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        [*ordered_assets(), *all_checks()],
        instance=instance,
        resources={"quill": quill},
        run_config={"ops": {name: {"config": values} for name, values in config.items()}},
    )


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict:
    [materialization] = [
        event.step_materialization_data.materialization
        for event in result.get_asset_materialization_events()
        if event.asset_key == dg.AssetKey(asset)
    ]
    return {name: value.value for name, value in materialization.metadata.items()}
