"""Asset checks: what must be true of a materialization before a person relies on it."""

import dagster as dg

from dagster_project.defs.assets import adapter, documents, features, instruct_dataset, release
from dagster_project.recorded import latest_id
from dagster_project.resources import Check, QuillResource


@dg.asset_check(asset=documents)
def documents_were_accepted(quill: QuillResource) -> dg.AssetCheckResult:
    """At least one document is known and none was rejected."""
    return _result(quill.wiring().check_documents(), dg.AssetCheckSeverity.WARN)


@dg.asset_check(asset=features)
def index_holds_every_chunk(quill: QuillResource) -> dg.AssetCheckResult:
    """The index has exactly the chunks of the feature store."""
    return _result(quill.wiring().check_index())


@dg.asset_check(asset=instruct_dataset)
def no_document_on_both_sides(context: dg.AssetCheckExecutionContext, quill: QuillResource) -> dg.AssetCheckResult:
    """No source document has rows in train and in held-out."""
    return _result(quill.wiring().check_dataset(latest_id(context.instance, "instruct_dataset")))


@dg.asset_check(asset=adapter)
def served_is_what_was_trained(context: dg.AssetCheckExecutionContext, quill: QuillResource) -> dg.AssetCheckResult:
    """The proof matches, and it fails for no adapter, for double scale and for swapped layers."""
    return _result(quill.wiring().check_adapter(latest_id(context.instance, "adapter")), dg.AssetCheckSeverity.WARN)


@dg.asset_check(asset=release)
def production_answers_with_this_release(quill: QuillResource) -> dg.AssetCheckResult:
    """The production channel resolves, and every part of its release exists."""
    return _result(quill.wiring().check_release())


def _result(outcome: Check, severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR) -> dg.AssetCheckResult:
    passed, metadata = outcome
    return dg.AssetCheckResult(passed=passed, severity=severity, metadata=metadata)
