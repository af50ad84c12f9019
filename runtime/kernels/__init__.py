"""Compiled loops: Numba functions only, each behind a plain Python function elsewhere."""
