"""Text generation with a model: sampling, stop strings, decoding token by token."""

from ltc_textgen.generation.generate import Completion, TextChunk, generate, generate_stream
from ltc_textgen.generation.sample_text import FinishReason
from ltc_textgen.generation.sampling import LogitsError

__all__ = ["Completion", "FinishReason", "LogitsError", "TextChunk", "generate", "generate_stream"]
