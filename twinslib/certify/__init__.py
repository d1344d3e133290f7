"""Certification by randomized smoothing."""
