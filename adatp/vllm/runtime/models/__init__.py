"""The pruned models, by vLLM's interface. Each module is named after the model_type of its family."""
