"""Autoloaded definitions: `dg` and `dagster dev` read every module in this folder."""
