"""predictions -> policy."""
