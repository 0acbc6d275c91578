"""The registry, its tags, signatures, and the targets that releases are sent to."""
