"""Ids that assets recorded as metadata, read back from the Dagster instance."""

import dagster as dg

from infra.errors import NotFound


def latest_id(instance: dg.DagsterInstance, asset: str, kind: str = "") -> str:
    """The `id` of an asset's newest materialization, of the given `kind` when one is named.

    Raises `NotFound` when the asset was never materialized that way.
    """
    records = instance.fetch_materializations(dg.AssetKey(asset), limit=50).records
    for record in records:
        materialization = record.asset_materialization
        if materialization is None:
            continue
        metadata = {name: value.value for name, value in materialization.metadata.items()}
        if "id" in metadata and (not kind or metadata.get("kind") == kind):
            return str(metadata["id"])
    raise NotFound(f"asset {asset} has never been materialized", fix=f"materialize it first: {asset}")
