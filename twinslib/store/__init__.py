"""What is finished, and what is left to do."""
