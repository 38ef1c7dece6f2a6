"""Liquid time-constant networks as language models."""
