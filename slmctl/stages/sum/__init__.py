"""file + linear members -> their weighted sum."""
