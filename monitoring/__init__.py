"""Judges, drift detectors, alerts with evidence, evaluation reports, and the sinks that show them."""
