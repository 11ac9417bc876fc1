"""Array of conventional multiply-accumulate elements: binary16 products, binary32 sums."""
