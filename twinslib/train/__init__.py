"""Training: a step, the loop, and what is recorded on the way."""
