"""Training: from settings to a run directory, with runs that survive being stopped (see `loop`)."""

from ltc_textgen.training.loop import TrainResult, train
from ltc_textgen.training.report import Reporter, make_reporter

__all__ = ["Reporter", "TrainResult", "make_reporter", "train"]
