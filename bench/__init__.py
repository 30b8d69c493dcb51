"""Benchmarks of the kernels, of a whole prefill, and of the time to the first token. They are not in the wheel."""

from bench import checkout

checkout.find_kernels()
