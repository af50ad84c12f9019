"""CUDA kernels: Numba functions only, each behind a plain Python function in ``runtime.device``.

Every kernel is a grid-stride loop over a number of items, so that any launch of at least one thread covers them all.
Arrays are C-contiguous, (z, y, x), and products that a sum follows are taken with ``product32`` and ``product64``.
"""
