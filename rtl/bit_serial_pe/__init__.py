"""Array of bit-serial processing elements for low-bit weights of mixed types."""
