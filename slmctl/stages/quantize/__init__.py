"""merged + prepared -> gguf."""
