"""Reference PyTorch for decoder-only transformers, and the published models as data.

``config`` (light, no torch) reads ``presets/*.toml``; ``decoder`` builds the network from it; ``ops``
holds the composite operators that capture intercepts; ``hf`` translates Hugging Face models.
"""
