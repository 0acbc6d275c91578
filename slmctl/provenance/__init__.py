"""What came from what, and what is still needed: trace, diff, reproduce, gc."""
