"""encoder + prepared -> encoder."""
