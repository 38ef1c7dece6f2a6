"""The language models that the benchmarks compare, behind one interface.

    hidden, state = model(ids, state, elapsed)      (B, T) -> (B, T, D); `state` is None at the start (always for GPT-2)
    losses = model.loss(hidden, targets)            nats, (B, T)

* `Liquid`: the network of this package.
* `Awd`: nn.LSTM or nn.GRU as in an AWD-LSTM: embedding dropout, locked dropout, weight drop, tied weights.
* `Gpt2`: the GPT-2 class of `transformers`, in any size.
* minGRU, nn.GRU: a `Liquid` network whose liquid layers are replaced (`exchange_cells`), so that everything else
  (norm, convolution, gate, residual) is equal.

Sources: Merity et al. 2017, arXiv:1708.02182 (AWD-LSTM); Feng et al. 2024, arXiv:2410.01201 (minGRU).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltc_textgen.config import ModelConfig
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork
from ltc_textgen.kernels.newton_scan import linear_scan
from ltc_textgen.layers import LiquidLayer
from ltc_textgen.model.blocks import LiquidBlock


class LanguageModel(nn.Module):
    """The interface of every model."""

    context: int | None = None
    """Context length in tokens; None for a recurrent network."""

    def forward(self, ids: Tensor, state: Any = None, elapsed: Tensor | None = None) -> tuple[Tensor, Any]:
        raise NotImplementedError

    @property
    def vocabulary(self) -> int:
        """Vocabulary size of the output layer."""
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        raise NotImplementedError

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = self.logits(hidden).float()
        return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none").view_as(targets)

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())


def detached(state: Any) -> Any:
    """The state of any of the models, detached from the graph."""
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, list | tuple):
        return type(state)(detached(part) for part in state)
    return state if state is None else state.detach()


class Liquid(LanguageModel):
    """Wraps a `LiquidTimeConstantNetwork`."""

    def __init__(self, network: LiquidTimeConstantNetwork) -> None:
        super().__init__()
        self.network = network

    @classmethod
    def of(cls, vocabulary: int, outputs: int | None = None, **settings: Any) -> "Liquid":
        """A network of `settings` (see `ModelConfig`)."""
        values = {"input_size": vocabulary, "output_size": outputs, **settings}
        return cls(LiquidTimeConstantNetwork.from_settings(ModelConfig.parse(values)))

    def forward(self, ids: Tensor, state: Any = None, elapsed: Tensor | None = None) -> tuple[Tensor, Any]:
        return self.network.advance(ids, state, elapsed)

    @property
    def vocabulary(self) -> int:
        return self.network.settings.vocabulary

    def logits(self, hidden: Tensor) -> Tensor:
        return self.network.lm_head.logits(hidden)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return self.network.lm_head.loss(hidden, targets)


class MinGruCell(LiquidLayer):
    """minGRU: x_t = (1 - z) x_{t-1} + z h, where z and h depend on the input alone."""

    def __init__(self, input_size: int, hidden_size: int, **time: Any) -> None:
        super().__init__(input_size, hidden_size, **time)
        self.input = nn.Linear(input_size, 2 * hidden_size)

    def project(self, u: Tensor) -> Tensor:
        return self.input(u)

    def scan(self, drive: Tensor, x: Tensor, elapsed: Tensor) -> tuple[Tensor, Tensor]:
        gate, candidate = drive.chunk(2, dim=-1)
        update = torch.sigmoid(gate)
        first = torch.cat([(1 - update[:, :1]) * x[:, None], torch.zeros_like(update[:, 1:])], dim=1)
        states = linear_scan(1 - update, update * candidate + first)
        return states, states[:, -1]

    def step(self, drive: Tensor, x: Tensor, elapsed: Tensor) -> Tensor:
        return self.scan(drive[:, None], x, elapsed)[1]

    def time_constants(self, u: Tensor, states: Tensor) -> Tensor:
        return -1 / F.logsigmoid(-self.input(u).chunk(2, dim=-1)[0])


class GruCell(MinGruCell):
    """nn.GRU in place of the liquid layer of a block."""

    def __init__(self, input_size: int, hidden_size: int, **time: Any) -> None:
        LiquidLayer.__init__(self, input_size, hidden_size, **time)
        self.gru = nn.GRU(input_size, hidden_size, batch_first=True)

    def project(self, u: Tensor) -> Tensor:
        return u  # nn.GRU projects its inputs itself, for all tokens at once

    def scan(self, drive: Tensor, x: Tensor, elapsed: Tensor) -> tuple[Tensor, Tensor]:
        states, last = self.gru(drive, x[None])
        return states, last[0]

    def time_constants(self, u: Tensor, states: Tensor) -> Tensor:
        raise NotImplementedError("a GRU has gates, not time constants")


def exchange_cells(model: Liquid, kind: Callable[..., LiquidLayer]) -> Liquid:
    """Replace the liquid layer of every block by another with as many neurons."""
    for layer in model.network.layers:
        layer.cell = kind(layer.cell.input_size, layer.cell.hidden_size)
    return model


class WithMlp(nn.Module):
    """A liquid block followed by a residual MLP of four times the width, as in a transformer."""

    def __init__(self, block: LiquidBlock, width: int) -> None:
        super().__init__()
        self.block = block
        self.mlp = nn.Sequential(
            nn.RMSNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width, bias=False)
        )

    def initial_state(self, batch_size: int) -> Any:
        return self.block.initial_state(batch_size)

    def forward(self, u: Tensor, *rest: Any) -> tuple[Tensor, Any]:
        y, after = self.block(u, *rest)
        return y + self.mlp(y), after


@dataclass(frozen=True)
class Drop:
    """Dropout probabilities of an AWD model."""

    embedding: float = 0.0  # whole rows of the embedding
    input: float = 0.0  # features of the embedding, the same mask for all tokens of a window
    hidden: float = 0.0  # likewise between layers
    output: float = 0.0  # likewise before the output layer
    weight: float = 0.0  # recurrent weights


class Awd(LanguageModel):
    """Layers of nn.LSTM or nn.GRU between an embedding and an output layer, as in AWD-LSTM.

    Args:
        kind: lstm or gru.
        vocabulary: V.
        width: Size of the embedding, and of the last layer.
        hidden: Size of the other layers.
        layers: How many layers.
        drop: Dropout probabilities.
        tied: Whether embedding and output layer are one matrix.
        outputs: Vocabulary size of the output layer; V if None.
    """

    def __init__(
        self,
        kind: str,
        vocabulary: int,
        width: int,
        hidden: int,
        layers: int,
        drop: Drop | None = None,
        *,
        tied: bool = True,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        self.kind, self.drop = kind, drop or Drop()
        self.embedding = nn.Embedding(vocabulary, width)
        sizes = [width, *[hidden] * (layers - 1), width]
        make = {"lstm": nn.LSTM, "gru": nn.GRU}[kind]
        self.layers = nn.ModuleList(make(a, b, batch_first=True) for a, b in pairwise(sizes))
        self.head = nn.Linear(width, outputs or vocabulary)
        nn.init.zeros_(self.head.bias)
        if tied:
            nn.init.normal_(self.embedding.weight, std=0.05)
            self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor, state: Any = None, elapsed: Tensor | None = None) -> tuple[Tensor, Any]:
        x, after = self._locked(self._embed(ids), self.drop.input), []
        for i, layer in enumerate(self.layers):
            before = self._rest(layer, len(ids)) if state is None else state[i]
            x, layer_after = self._run(layer, x, before)
            x = self._locked(x, self.drop.output if i == len(self.layers) - 1 else self.drop.hidden)
            after.append(layer_after)
        return x, after

    @property
    def vocabulary(self) -> int:
        return self.head.out_features

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)

    def _embed(self, ids: Tensor) -> Tensor:
        rate = self.drop.embedding
        if not self.training or rate == 0:
            return self.embedding(ids)
        kept = torch.empty(self.embedding.num_embeddings, 1).bernoulli_(1 - rate) / (1 - rate)
        return self.embedding(ids) * kept[ids]

    def _locked(self, x: Tensor, rate: float) -> Tensor:
        if not self.training or rate == 0:
            return x
        return x * (x.new_empty(x.shape[0], 1, x.shape[2]).bernoulli_(1 - rate) / (1 - rate))

    def _rest(self, layer: nn.Module, batch: int) -> Any:
        zeros = torch.zeros(1, batch, layer.hidden_size)
        return (zeros, zeros) if self.kind == "lstm" else zeros

    def _run(self, layer: nn.Module, x: Tensor, before: Any) -> tuple[Tensor, Any]:
        if not self.training or self.drop.weight == 0:
            return layer(x, before)
        weights = [layer.weight_ih_l0, F.dropout(layer.weight_hh_l0, self.drop.weight)]
        weights += [layer.bias_ih_l0, layer.bias_hh_l0]
        rest = (weights, True, 1, 0.0, True, False, True)  # biases, layers, dropout, training, directions, batch first
        if self.kind == "gru":
            return torch.gru(x, before, *rest)
        y, h, c = torch.lstm(x, before, *rest)
        return y, (h, c)


class Gpt2(LanguageModel):
    """`GPT2LMHeadModel`, randomly initialised; learned positions limit it to `context` tokens."""

    def __init__(
        self,
        vocabulary: int,
        context: int,
        width: int,
        layers: int,
        heads: int,
        dropout: float = 0.0,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        self.context = context
        config = GPT2Config(
            vocab_size=max(vocabulary, outputs or 0),
            n_positions=context,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            activation_function="gelu_pytorch_tanh",  # the same function as gelu_new, in one kernel
            bos_token_id=0,
            eos_token_id=0,
            attn_implementation="sdpa",
        )
        self.network = GPT2LMHeadModel(config)

    def forward(self, ids: Tensor, state: Any = None, elapsed: Tensor | None = None) -> tuple[Tensor, Any]:
        return self.network.transformer(ids, use_cache=False).last_hidden_state, None

    @property
    def vocabulary(self) -> int:
        return self.network.config.vocab_size

    def logits(self, hidden: Tensor) -> Tensor:
        return self.network.lm_head(hidden)
