"""Metrics of answers, with intervals, tests and gates."""
