"""Is a served model still as good as it was measured? Estimates, verified shares, drift."""
