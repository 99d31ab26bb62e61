"""Measurements: each module prints its figures, says what it compared with, and skips with a reason."""
