"""Kernels of a Gaudi's own, as plain torch ops."""
