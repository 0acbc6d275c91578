"""model + rows -> predictions."""
