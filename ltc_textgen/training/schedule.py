"""The learning rate as a function of progress, and nothing else: warm-up in a straight line, then half a cosine."""

import math


def rate_factor(progress: float, warmup: float, floor: float) -> float:
    """Learning rate as a share of its peak.

    Args:
        progress: How much of the run is done, 0 to 1; values beyond are taken as the nearer end.
        warmup: Share of the run in which the rate rises, in [0, 1).
        floor: Rate at the end, as a share of the peak, in [0, 1].

    Returns:
        A factor in (0, 1]. The very first step of a warm-up gets a hundredth of the peak, not zero, so that it
        moves something.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return max(progress / warmup, 0.01)
    decay = (progress - warmup) / (1.0 - warmup)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * decay))
