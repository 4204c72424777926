"""The orders in which the emulator of CUDA runs threads."""

ORDERS = (("forward", 0), ("reverse", 0), ("random", 1), ("random", 2))
