"""The u-chart core: pure functions over arrays, compiled with numba.

``state`` holds the layout of a chart in memory, ``judge`` the kernels, ``jit`` their on-disk cache.
Nothing here does I/O (but for the cache of compiled code), reads a clock or draws a random number.
"""
