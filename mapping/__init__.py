"""Placement of operators on devices, provably good; see ``docs/mapping.md``."""
