"""What the neurons of a network do on a text: time constants, what they follow, and what depends on them.

    run = load_run("runs/book")
    seen = trace(run.network, text)                  # tokens, time constants, states and surprise at every token
    half_lives(seen)                               # how long neurons keep what they have read
    find(seen, labels(seen.pieces)["quotes"])      # which neurons follow quotations: a correlation
    ablate(run.network, seen, ["L0N3"])              # what the loss becomes without a neuron: an intervention

| question                                            | function              |
|-----------------------------------------------------|-----------------------|
| what happens at every token?                        | `trace`, `top`        |
| how long do neurons remember, by their equation?    | `half_lives`          |
| how long do they remember, by experiment?           | `effective_timescale` |
| which neuron follows a property of the text?        | `labels`, `find`      |
| what does the prediction lose without a neuron?     | `ablate`, `clamp`     |
| which time constants carry which words?             | `routing`             |
| how many tokens of the past does a prediction use?  | `memory_curve`        |
| where, and how long, do two texts differ inside?    | `compare`             |
| does the recurrence contract or expand?             | `jacobian`, `lyapunov`|
| what does the solver's step size cost?              | `solver_error`        |

Every function works with every coupling and needs PyTorch and NumPy only. Time constants are in tokens.
"""

from ltc_textgen.analysis.compare import Comparison, compare
from ltc_textgen.analysis.find import Finding, find
from ltc_textgen.analysis.half_lives import HalfLives, half_lives
from ltc_textgen.analysis.interventions import Effect, ablate, clamp, routing, tau_bands
from ltc_textgen.analysis.jacobian import jacobian, lyapunov
from ltc_textgen.analysis.labels import labels, word_frequency
from ltc_textgen.analysis.memory_curve import MemoryCurve, memory_curve
from ltc_textgen.analysis.neurons import Neuron
from ltc_textgen.analysis.solver_error import solver_error
from ltc_textgen.analysis.timescales import EffectiveTimescale, effective_timescale
from ltc_textgen.analysis.top import Place, top
from ltc_textgen.analysis.trace import Trace, trace

__all__ = [
    "Comparison",
    "Effect",
    "EffectiveTimescale",
    "Finding",
    "HalfLives",
    "MemoryCurve",
    "Neuron",
    "Place",
    "Trace",
    "ablate",
    "clamp",
    "compare",
    "effective_timescale",
    "find",
    "half_lives",
    "jacobian",
    "labels",
    "lyapunov",
    "memory_curve",
    "routing",
    "solver_error",
    "tau_bands",
    "top",
    "trace",
    "word_frequency",
]
