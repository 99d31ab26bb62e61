"""Alembic migrations of the records database, shipped with the package and run at every start."""
