"""Files, SQL, data sets of the hub and pipes, as rows."""
