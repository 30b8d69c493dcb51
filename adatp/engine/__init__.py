"""Pruning as tensor code. Nothing here knows Hugging Face's transformers."""
