"""model source -> base."""
