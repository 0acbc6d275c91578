"""Is a served model still as good as it was measured? Verified accuracy and shares by week."""
