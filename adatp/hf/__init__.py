"""The adapter to Hugging Face's transformers: hooks, caches, and checks of the input."""
