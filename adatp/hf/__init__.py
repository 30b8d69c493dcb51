"""The adapter to Hugging Face's transformers: hooks, caches, and what is refused."""
