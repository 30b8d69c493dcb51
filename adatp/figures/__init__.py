"""Where the model looks, and what is left of what it sees: the paper's figures, from any clip."""
