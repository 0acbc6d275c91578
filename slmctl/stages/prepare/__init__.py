"""rows -> prepared."""
