"""Small tools for tensors, which know nothing but PyTorch."""
