"""Small tools for tensors that use nothing but PyTorch."""
