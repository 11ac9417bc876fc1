"""Hardware: device files, and the cost models that read them."""
