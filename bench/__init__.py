"""Measurements of the kernels, of a whole prefill, and of the way to the first token. Not in the wheel."""

from bench import checkout

checkout.find_kernels()
