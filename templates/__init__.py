"""What `slmctl init` copies and what commands render."""
