"""base + prepared -> adapter."""
