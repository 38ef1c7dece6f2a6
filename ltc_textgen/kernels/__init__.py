"""Fused kernels, each with a readable reference of the same signature, and the choice among them (`dispatch`)."""
