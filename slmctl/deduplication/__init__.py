"""MinHash, near-duplicates and n-gram overlap."""
