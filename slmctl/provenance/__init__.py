"""Provenance of artifacts: trace, diff, reproduce, gc."""
