"""Stages from raw material to records: pull, prepare."""
