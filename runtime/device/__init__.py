"""The device path: a scan stays on the GPU from its upload until masks come back.

The algorithms are those of ``runtime.resample``, ``runtime.windows``, ``runtime.voting`` and ``runtime.crops``, and so
are the results, bit for bit, where the network's outputs are the same (docs/decisions/0012).
Nothing outside imports this package before an engine that offers device tensors was chosen: it needs numba-cuda.
"""
