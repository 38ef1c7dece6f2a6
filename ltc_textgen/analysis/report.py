"""The analysis of a run on a text as one document, which `ltc analyse` prints and its page shows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ltc_textgen.analysis.find import Finding, find
from ltc_textgen.analysis.half_lives import HalfLives, half_lives
from ltc_textgen.analysis.interventions import Mean, ablate, quantile_bands, tau_bands
from ltc_textgen.analysis.labels import labels, word_frequency
from ltc_textgen.analysis.memory_curve import memory_curve
from ltc_textgen.analysis.neurons import Neuron
from ltc_textgen.analysis.timescales import EffectiveTimescale, effective_timescale
from ltc_textgen.analysis.top import top
from ltc_textgen.analysis.trace import Trace
from ltc_textgen.errors import DataError, UsageError
from ltc_textgen.model.network import LiquidNetwork
from ltc_textgen.shapes import Float

DEFAULT_LABELS = ("line_position", "quotes", "speaker", "capitals", "rare_words")
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
DESCRIBED = 10
"""Neurons that the report describes one by one."""

PLACES = 5
DISTANCES = (1, 2, 3, 4, 6, 8, 16, 32, 64, 128, 256)
BANDS = 4
WORDS = ("rare", "middle", "frequent")


@dataclass(frozen=True)
class Size:
    """How much of a text each part of the report uses.

    Args:
        searched: Tokens in which neurons are searched.
        intervened: Tokens that are read again with silenced neurons.
        predicted: Tokens of the memory curve.
        segments: Segments of the effective timescale.
        length: Tokens of each, and of its contexts.
    """

    searched: int = 20_000
    intervened: int = 2_000
    predicted: int = 128
    segments: int = 16
    length: int = 128


def analyse(
    model: LiquidNetwork,
    trace: Trace,
    wanted: Sequence[str] = (),
    size: Size | None = None,
    progress: Callable[[str], None] = lambda part: None,
) -> dict[str, Any]:
    """The report, as JSON values.

    Args:
        model: Network that the trace is of.
        trace: Of a text.
        wanted: Labels to search for, as named by `labels`, or "regex:" and an expression; `DEFAULT_LABELS`, as far as
            the text has them, if empty.
        size: How much of the text each part uses.
        progress: Called with the name of each part before it is computed.

    Raises:
        UsageError: If a label is unknown.
        DataError: If a label that was asked for occurs too seldom.
    """
    size = size or Size()
    progress("half-lives")
    lives = half_lives(trace)
    ids = torch.from_numpy(np.array(trace.ids))[None]
    progress("effective timescales")
    effective = _effective(model, ids, size)
    progress("neurons that follow labels")
    findings = _findings(trace.first(size.searched), wanted)
    short = trace.first(size.intervened)
    progress("neurons silenced one by one")
    neurons = [_neuron(model, trace, short, *one, lives) for one in _telling(findings)]
    progress("bands of neurons silenced")
    routed = _routing(model, short, word_frequency(trace.pieces)[: len(short)])
    progress("memory curve")
    curve = memory_curve(model, ids, distances=DISTANCES, tokens=size.predicted)
    return {
        "tokens": len(trace),
        "loss": trace.loss,
        "half_lives": _lives(lives),
        "effective_timescale": effective,
        "correlation": {name: _finding(one) for name, one in findings.items()},
        "neurons": neurons,
        "routing": routed,
        "memory_curve": asdict(curve) | {name: getattr(curve, name).tolist() for name in ("loss", "error", "increase")},
        "size": asdict(size),
    }


def _lives(lives: HalfLives) -> dict[str, Any]:
    layers = [
        {
            "half_life": np.quantile(half, QUANTILES, method="lower").tolist(),
            "spread_of_log_tau": float(np.nanmedian(spread)),
        }
        for half, spread in zip(lives.half_life, lives.spread, strict=True)
    ]
    fits = {"inverse_gamma": asdict(lives.inverse_gamma), "log_normal": asdict(lives.log_normal)}
    return {"quantiles": QUANTILES, "layers": layers, "infinite": lives.infinite, **fits}


def _effective(model: LiquidNetwork, ids: torch.Tensor, size: Size) -> dict[str, Any] | None:
    length = min(size.length, ids.shape[1] // 4)
    if length < 1:
        return None
    found: EffectiveTimescale = effective_timescale(model, ids, segments=size.segments, length=length, context=length)
    layers = [
        {"median": float(np.median(half)), "not_forgotten": float(np.isinf(half).mean()), "correlation_with_tau": value}
        for half, value in zip(found.half_distance, found.correlation, strict=True)
    ]
    return {"segments": size.segments, "length": length, "layers": layers}


def _findings(trace: Trace, wanted: Sequence[str]) -> dict[str, Finding]:
    """Of each label; of the default ones those that the text has."""
    expressions = [name.removeprefix("regex:") for name in wanted if name.startswith("regex:")]
    known = labels(trace.pieces)
    for expression in expressions:
        known[f"regex:{expression}"] = labels(trace.pieces, expression)["regex"]
    for name in wanted:
        if name not in known:
            raise UsageError(f"--find {name}: expected regex:EXPRESSION or one of {', '.join(known)}")
    found = {}
    for name in wanted or DEFAULT_LABELS:
        try:
            found[name] = find(trace, known[name])
        except DataError as error:
            if wanted:
                raise DataError(f"--find {name}: {error}") from None
    return found


def _telling(findings: Mapping[str, Finding]) -> list[tuple[Neuron, str, float]]:
    """The neurons that follow a label best, each once, the labels in turn."""
    chosen: dict[Neuron, tuple[str, float]] = {}
    for rank in range(DESCRIBED):
        for name, found in findings.items():
            if rank < len(found.neurons) and len(chosen) < DESCRIBED:
                chosen.setdefault(found.neurons[rank], (name, float(found.auc[rank])))
    return [(neuron, *about) for neuron, about in chosen.items()]


def _neuron(
    model: LiquidNetwork, trace: Trace, short: Trace, neuron: Neuron, label: str, auc: float, lives: HalfLives
) -> dict[str, Any]:
    """The facts on a neuron: the labels it follows, where it is extreme, and the loss without it."""
    effect = ablate(model, short, [neuron])
    expression = label.removeprefix("regex:") if label.startswith("regex:") else None
    values = labels(short.pieces, expression)["regex" if expression else label]
    split = values > np.nanmedian(values) if np.nanmax(values, initial=0) > 1 else values == 1
    return {
        "name": str(neuron),
        "half_life": float(lives.half_life[neuron.layer][neuron.number]),
        "spread_of_log_tau": float(lives.spread[neuron.layer][neuron.number]),
        "correlation": {"label": label, "auc": auc},
        "intervention": {
            "all": asdict(effect.mean),
            "with_label": _part(effect.change, split),
            "without_label": _part(effect.change, ~split),
        },
        "highest": [asdict(place) for place in top(trace, neuron, count=PLACES)],
        "lowest": [asdict(place) for place in top(trace, neuron, count=PLACES, largest=False)],
    }


def _part(change: Float[np.ndarray, " T"], chosen: np.ndarray) -> float | None:
    kept = change[chosen & np.isfinite(change)]
    return float(kept.mean()) if len(kept) else None


def _finding(found: Finding) -> dict[str, Any]:
    return {
        "neurons": [str(neuron) for neuron in found.neurons],
        "auc": found.auc.tolist(),
        "baseline": {
            "median": float(np.median(found.baseline)),
            "highest": float(found.baseline.max()),
            "shifts": len(found.baseline),
        },
        "p_value": found.p_value,
        "positive": found.positive,
        "threshold": found.threshold,
    }


def _routing(model: LiquidNetwork, short: Trace, frequency: Float[np.ndarray, " T"]) -> list[dict[str, Any]]:
    """The change of the loss without each band of neurons, by the frequency of the word."""
    groups = quantile_bands(frequency, len(WORDS))
    rows = []
    for band in tau_bands(short, min(BANDS, sum(short.sizes))):
        effect = ablate(model, short, band)
        by: dict[float, Mean] = effect.by(groups)
        taus = [np.median(short.series(neuron, "tau")) for neuron in band]
        words = {WORDS[int(group)]: mean.change for group, mean in by.items()}
        half = np.log(2) * np.array(taus)
        rows.append({"half_life": [float(half.min()), float(half.max())], "change": effect.mean.change, "words": words})
    return rows
