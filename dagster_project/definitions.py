"""The code location that `dagster dev` and `dg` load; it needs nothing from the environment."""

from pathlib import Path

import dagster as dg

from infra.settings import quiet_third_parties

quiet_third_parties()

defs: dg.Definitions = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
