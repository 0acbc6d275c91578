"""Stages from a measured model to a release: publish."""
