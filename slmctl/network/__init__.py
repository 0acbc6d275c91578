"""What may leave this machine, and the clients that ask."""
