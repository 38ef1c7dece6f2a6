"""Fused kernels and the choice among them."""
