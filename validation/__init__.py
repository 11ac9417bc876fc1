"""Measurements: what the models are checked against, and the constants and intervals earned there."""
