"""Example data sets, written for slmctl; `slmctl init` copies the one that its template uses."""
