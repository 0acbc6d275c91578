"""rows without an answer -> labelled."""
