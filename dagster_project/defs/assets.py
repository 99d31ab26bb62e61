"""The asset graph: documents → features → instruct_dataset → adapter → evaluation_report → release.

Each body calls one function of the wiring, which returns a manifest's summary; the content-addressed rooms
below make a repeated materialization cheap. Ids travel from asset to asset as metadata (`id`).
"""

import dagster as dg

from dagster_project.contenders import COMPARED_TOKENS
from dagster_project.recorded import latest_id
from dagster_project.resources import QuillResource

GROUP = "content_to_release"


class DocumentsConfig(dg.Config):
    """What to ingest."""

    corpus: str = ""
    """Folder or file to ingest; empty: the notes in examples/notes and the installed packages' descriptions."""


class DatasetConfig(dg.Config):
    """Size of the instruct dataset."""

    max_rows: int = 400
    """Upper bound of rows, held-out ones included."""


class AdapterConfig(dg.Config):
    """Which training recipe."""

    recipe: str = "default"
    """Name of a recipe in training.recipes: 'default' or 'tiny'."""


class EvaluationConfig(dg.Config):
    """What to evaluate."""

    alert_id: str = ""
    """Report on the release and slice of this alert; empty: compare the contenders for a release."""
    requests: list[str] = []  # noqa: RUF012 - Dagster configs are pydantic models, fields are copied
    """Questions every contender answers; empty: the first ones of the project's list."""
    max_tokens: int = COMPARED_TOKENS
    """Upper bound of answer tokens per request."""


@dg.asset(group_name=GROUP, kinds={"kafka"})
def documents(config: DocumentsConfig, quill: QuillResource) -> dg.MaterializeResult[None]:
    """Source documents published to `content.documents`: new, changed, deleted and rejected ones counted."""
    return dg.MaterializeResult(metadata=quill.wiring().publish_documents(config.corpus))


@dg.asset(group_name=GROUP, deps=[documents], kinds={"qdrant"})
def features(quill: QuillResource) -> dg.MaterializeResult[None]:
    """Chunks, embeddings and index, caught up with the log by whoever owns the index; never a second writer."""
    return dg.MaterializeResult(metadata=quill.wiring().reach_features())


@dg.asset(group_name=GROUP, deps=[features], kinds={"dataset"})
def instruct_dataset(config: DatasetConfig, quill: QuillResource) -> dg.MaterializeResult[None]:
    """Instruction and answer rows derived from the chunks, de-duplicated and split by source."""
    return dg.MaterializeResult(metadata=quill.wiring().build_dataset(config.max_rows))


@dg.asset(group_name=GROUP, deps=[instruct_dataset], kinds={"pytorch"})
def adapter(
    context: dg.AssetExecutionContext, config: AdapterConfig, quill: QuillResource
) -> dg.MaterializeResult[None]:
    """LoRA adapter of the small base on that dataset, with the proof that the serving engine runs what was trained."""
    dataset_id = latest_id(context.instance, "instruct_dataset")
    return dg.MaterializeResult(metadata=quill.wiring().train_adapter(dataset_id, config.recipe))


@dg.asset(group_name=GROUP, deps=[adapter], kinds={"report"})
def evaluation_report(
    context: dg.AssetExecutionContext, config: EvaluationConfig, quill: QuillResource
) -> dg.MaterializeResult[None]:
    """Contenders compared on the same requests; with an alert id, the affected release and slice examined."""
    adapter_id = "" if config.alert_id else latest_id(context.instance, "adapter")
    return dg.MaterializeResult(
        metadata=quill.wiring().evaluate(
            adapter_id, requests=config.requests, max_tokens=config.max_tokens, alert_id=config.alert_id
        )
    )


@dg.asset(group_name=GROUP, deps=[evaluation_report], kinds={"release"})
def release(context: dg.AssetExecutionContext, quill: QuillResource) -> dg.MaterializeResult[None]:
    """Prompt, model, adapter, index build, judge and decoding promoted as one; undecided keeps the default."""
    comparison_id = latest_id(context.instance, "evaluation_report", kind="comparison")
    return dg.MaterializeResult(metadata=quill.wiring().promote(comparison_id))
