"""The n-gram memory of a text, and its mixture with a network's distribution."""

from ltc_textgen.memory.mixture import Mixture
from ltc_textgen.memory.ngrams import NgramMemory

__all__ = ["Mixture", "NgramMemory"]
