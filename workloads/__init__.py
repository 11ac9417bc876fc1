"""What has to be computed: traces, their capture from PyTorch, and techniques that rewrite them."""
