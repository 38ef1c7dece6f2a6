"""The n-gram memory of a text, and its mixture with a network's distribution."""

from ltc_textgen.memory.files import load_memory, memory_facts, save_memory
from ltc_textgen.memory.mixture import Mixture
from ltc_textgen.memory.ngrams import NgramMemory

__all__ = ["Mixture", "NgramMemory", "load_memory", "memory_facts", "save_memory"]
