"""Folders with a manifest: written whole, verified, locked."""
