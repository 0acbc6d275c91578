"""What answers score, with intervals, tests and gates."""
