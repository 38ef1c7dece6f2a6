"""The models that a server has, by name, and the engines that compute them."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any

from ltc_textgen.data.tokenizers import TextTokenizer
from ltc_textgen.errors import UsageError
from ltc_textgen.kernels.dispatch import report
from ltc_textgen.memory import Mixture
from ltc_textgen.model.network import LiquidNetwork
from ltc_textgen.model.state import LiquidState
from ltc_textgen.serve.api_error import ApiError
from ltc_textgen.serve.engine import Engine, Neuron, Options
from ltc_textgen.serve.spelling import spellings


@dataclass(frozen=True)
class Served:
    """A model with its engines.

    Args:
        name: Under which clients ask for it.
        model: Network, in evaluation mode.
        tokenizer: Its tokenizer.
        engines: Those that can compute it, the preferred one first. The last takes every option.
        memory: N-gram memory of its run, if it has one.
        created: When its run directory was loaded, in seconds since 1970.
    """

    name: str
    model: LiquidNetwork
    tokenizer: TextTokenizer
    engines: Sequence[Engine]
    memory: Mixture | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def weights(self) -> str:
        """Fingerprint of settings and weights."""
        return self.model.fingerprint()

    @cached_property
    def spelling(self) -> list[str]:
        """A different text for every token."""
        return spellings(self.tokenizer)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes that every token writes; of tokenizers that do not work on bytes, those of its spelling."""
        table = self.tokenizer.decoding_table()
        if table["style"] == "bytes":
            return [bytes.fromhex(piece) for piece in table["pieces"]]
        return [text.encode() for text in self.spelling]

    @cached_property
    def initial_state(self) -> LiquidState:
        """The state before the first token of a document."""
        return self.model.initial_state(1).detach()

    def engine_for(self, options: Options) -> Engine:
        """The engine that draws with these options.

        Raises:
            ApiError: If none can.
        """
        for engine in self.engines:
            if engine.supports(options):
                return engine
        raise ApiError(400, "ltc.clamp: the neurons of this model have no capacitance to clamp", "ltc.clamp")

    def fingerprint(self, engine: Engine) -> str:
        """Names everything that bits depend on: weights, engine, instruction set, version, and PyTorch's threads."""
        mixed = "" if self.memory is None else hashlib.sha256(self.memory.weights.tobytes()).hexdigest()
        machine = report()["cpu"]  # "avx2, 2 threads": the native decoder's bits do not depend on the threads
        machine = machine if engine.name == "torch" else machine.split(",")[0]
        facts = [self.weights, mixed, self.tokenizer.fingerprint, engine.name, machine, package_version()]
        return f"fp_{hashlib.sha256(chr(0).join(facts).encode()).hexdigest()[:16]}"

    def neuron(self, name: str, param: str) -> Neuron:
        """The neuron of a name such as L2N117: layer 2, neuron 117, both from 0.

        Raises:
            ApiError: If the model has no such neuron.
        """
        layer, _, index = name.removeprefix("L").partition("N")
        neuron = Neuron(int(layer), int(index))
        settings = self.model.settings
        if neuron.layer >= settings.num_layers or neuron.index >= settings.neurons:
            sizes = f"{settings.num_layers} layers of {settings.neurons} neurons"
            raise ApiError(400, f"{param}: there is no {name}: this model has {sizes}, from L0N0", param)
        return neuron

    def describe(self) -> dict[str, Any]:
        """The entry in /v1/models."""
        settings = self.model.settings
        facts = {
            "engine": self.engines[0].name,
            "fingerprint": self.fingerprint(self.engines[0]),
            "layers": settings.num_layers,
            "neurons": settings.neurons,
            "vocabulary": settings.vocabulary,
            "tokenizer": self.tokenizer.kind,
            "memory": self.memory is not None,
            "coupling": settings.coupling.value,
        }
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "ltc-textgen", "ltc": facts}


class Models:
    """All models of a server.

    Args:
        served: At least one, with different names.
    """

    def __init__(self, served: Sequence[Served]) -> None:
        self._by_name = {model.name: model for model in served}
        if len(self._by_name) < len(served):
            raise UsageError("two runs have the same name: give them as NAME=RUN_DIR")

    def __iter__(self) -> "Any":
        return iter(self._by_name.values())

    def find(self, name: str | None) -> Served:
        """The model of a name; the first one if None.

        Raises:
            ApiError: 404 if there is none.
        """
        if name is None:
            return next(iter(self._by_name.values()))
        if name not in self._by_name:
            known = ", ".join(self._by_name)
            raise ApiError(404, f"no model {name[:80]!r}; there are: {known}", "model", "model_not_found")
        return self._by_name[name]


def package_version() -> str:
    """The version of this package."""
    return version("ltc-textgen")
