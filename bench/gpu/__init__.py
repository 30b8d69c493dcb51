"""All that a GPU is wanted for, in one command: `python -m bench.gpu`."""
