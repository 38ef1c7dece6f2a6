"""The report as one self-contained HTML page, which loads no other file."""

import base64
import json
import re
from importlib.resources import files
from typing import Any

import numpy as np

from ltc_textgen.analysis.half_lives import half_lives
from ltc_textgen.analysis.trace import Trace
from ltc_textgen.shapes import Float, Shaped

MODULES = ("dom.js", "chart.js", "text.js", "report.js")
"""Modules of the page, each after those that it imports."""

SHOWN_TOKENS = 4000
HEAT_TOKENS, HEAT_NEURONS = 600, 96
INFINITE = 255


def page(report: dict[str, Any], trace: Trace, run: str, text: str) -> str:
    """The page of a report.

    Args:
        report: From `analyse`.
        trace: That the report is of.
        run: Name of the run.
        text: Name of the text.
    """
    from ltc_textgen.io.output import finite

    document = {
        "report": report,
        "run": run,
        "text": text,
        "view": view(trace, [one["name"] for one in report["neurons"]]),
    }
    data = json.dumps(finite(document), ensure_ascii=False, allow_nan=False)
    parts = {
        "TITLE": _escaped(f"{run}: time constants and neurons"),
        "STYLE": static("page.css"),
        # In JSON, < occurs in strings alone; unescaped it could end the script.
        "DATA": data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"),
        "SCRIPT": script(),
    }
    return re.sub(r"%(TITLE|STYLE|DATA|SCRIPT)%", lambda found: parts[found[1]], static("page.html"))


def view(trace: Trace, neurons: list[str]) -> dict[str, Any]:
    """What the page draws in addition to the report: JSON values.

    Args:
        trace: Of a text.
        neurons: Whose time constants colour the text.
    """
    shown = trace.first(SHOWN_TOKENS)
    layers = [(f"layer {i}, median", np.median(tau, axis=1)) for i, tau in enumerate(shown.tau)]
    lines = layers + [(name, np.asarray(shown.series(name, "tau"))) for name in neurons]
    surprise = [round(float(value), 3) for value in shown.surprise]
    return {
        "pieces": shown.pieces,
        "surprise": surprise,
        "tau": [{"name": name, "codes": _base64(log_codes(tau))} for name, tau in lines],
        "half_lives": [[float(f"{value:.4g}") for value in layer] for layer in half_lives(trace).half_life],
        "heat": [_heat(tau[:HEAT_TOKENS]) for tau in shown.tau],
    }


def log_codes(tau: Float[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
    """Time constants as bytes: 8 log2(tau) + 64, from 2^-8 to 2^23.75 tokens, to 4 %; 255 is infinite.

    >>> log_codes(np.array([1.0, 2.0, np.inf])).tolist()
    [64, 72, 255]
    """
    with np.errstate(divide="ignore"):
        codes = np.rint(8 * np.log2(tau.astype(np.float64)) + 64)
    return np.where(np.isinf(tau), INFINITE, codes.clip(0, INFINITE - 1)).astype(np.uint8)


def static(name: str) -> str:
    """A file of the page, as it lies in the package."""
    return (files("ltc_textgen.analysis") / "static" / name).read_text(encoding="utf-8")


def script() -> str:
    """The modules of the page as one: imports and exports between them are left out."""
    joined = "\n".join(static(name) for name in MODULES)
    joined = re.sub(r'^import \{[^}]*\} from "\./[a-z]+\.js";\n', "", joined, flags=re.MULTILINE)
    return re.sub(r"^export (?=function|const)", "", joined, flags=re.MULTILINE)


def _heat(tau: Float[np.ndarray, "T N"]) -> dict[str, Any]:
    order = np.argsort(np.median(tau, axis=0), kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(HEAT_NEURONS, len(order))).astype(int)]
    return {"rows": len(chosen), "columns": len(tau), "codes": _base64(log_codes(tau[:, chosen].T))}


def _base64(codes: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(codes).tobytes()).decode()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
