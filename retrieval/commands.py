"""Verbs of this room: none. `ingest`, `search` and `write` ask a running server first, so serving has them."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add this room's verbs to the command line."""
