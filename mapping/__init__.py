"""Placement of operators on devices, and tiling of one operator on one device."""
