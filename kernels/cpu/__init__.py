"""Fast products by weights of 1 to 4 bits on CPUs: packing, arithmetic in numpy, and kernels compiled by Numba.

:func:`.layout.pack` lays quantised weights out, :func:`.golden.golden_matmul` says what their product is, and
:func:`.matmul.matmul` computes it. Only :mod:`.matmul` and :mod:`.compiled` need numba (``tokenfab[kernels]``).
"""
