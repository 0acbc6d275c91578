"""predictions -> report."""
