"""Which runs answer a claim, and the rules fixed before them."""
