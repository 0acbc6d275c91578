"""base + adapter -> merged."""
