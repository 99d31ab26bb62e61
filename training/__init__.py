"""Instruct datasets, adapters, the proof that what is served is what was trained, and the comparison of contenders."""
