"""Outlier-victim pair decoder and the systolic tile behind it; see README.md."""
