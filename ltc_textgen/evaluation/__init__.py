"""How well a model predicts a text, and statistics of the text that it generates."""

from ltc_textgen.evaluation.metrics import EvaluationText, Scores, count_words, evaluate, read_text, tokenize
from ltc_textgen.evaluation.scoring import score_tokens

__all__ = ["EvaluationText", "Scores", "count_words", "evaluate", "read_text", "score_tokens", "tokenize"]
