"""A tensor core that multiplies by table lookup: low-bit weights, INT8 or binary16 activations (LUT Tensor Core)."""
