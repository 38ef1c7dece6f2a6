"""How well a model predicts a text, and how its own text reads."""

from ltc_textgen.evaluation.measures import Scores, count_words, evaluate, tokenize
from ltc_textgen.evaluation.scoring import score_tokens

__all__ = ["Scores", "count_words", "evaluate", "score_tokens", "tokenize"]
