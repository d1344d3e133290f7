"""Attacks, and which test images they leave right."""
