"""Pruning as tensor code, independent of Hugging Face's transformers."""
