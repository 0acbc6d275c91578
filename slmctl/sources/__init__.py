"""Files, SQL and data sets of the hub, as rows."""
