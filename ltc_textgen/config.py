"""Every setting of a model, a training run and a generation: its type, range, default and meaning, written once.

The command line, the recipe files and the documentation are made from these classes: a description is the help text.
The defaults of `DynamicConfig` and `CacheConfig` were chosen on validation texts; see docs/command-line.md.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ltc_textgen.settings import Names, Settings, with_current_names


class Solver(Names):
    """How a sub-step of the membrane equation is taken (see `solvers`)."""

    semi_implicit = "semi_implicit"
    explicit = "explicit"
    runge_kutta = "runge_kutta"
    exponential = "exponential"


class Coupling(Names):
    """What the conductances of a neuron depend on (see `layers`)."""

    full = "full"
    synaptic = "synaptic"
    diagonal = "diagonal"
    cfc = "cfc"


SMALLEST_NORMAL_FLOAT32 = 2.0**-126
MOST_WIRED = 16_384
"""Neurons of a layer whose synapses are drawn: a matrix of their square is made."""

Positive = Annotated[int, Field(ge=1, lt=2**63)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]


class WiringConfig(Settings):
    """Which synapses exist in the couplings `synaptic` and `cfc` (see `layers.wirings`)."""

    kind: Literal["fully_connected", "random", "ncp", "auto_ncp"] = Field(
        default="fully_connected", description="Family of wirings."
    )
    output_size: Positive | None = Field(
        default=None, description="Motor neurons, whose states leave the layer; all neurons if not given."
    )
    sparsity: Probability = Field(
        default=0.5, description="Fraction of synapses left out (random; auto_ncp, from 0.1)."
    )
    seed: int = Field(default=22222, ge=0, lt=2**32, description="Seed of the drawn synapses.")
    self_connections: bool = Field(
        default=True, description="Whether a neuron may have a synapse onto itself (fully_connected)."
    )
    inter_neurons: Positive | None = Field(default=None, description="Inter neurons (ncp).")
    command_neurons: Positive | None = Field(default=None, description="Command neurons (ncp).")
    sensory_fanout: Positive | None = Field(default=None, description="Inter neurons per input (ncp).")
    inter_fanout: Positive | None = Field(default=None, description="Command neurons per inter neuron (ncp).")
    recurrent_command_synapses: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Synapses among command neurons (ncp)."
    )
    motor_fanin: Positive | None = Field(default=None, description="Command neurons per motor neuron (ncp).")

    @model_validator(mode="after")
    def _complete(self) -> "WiringConfig":
        ncp = ["inter_neurons", "command_neurons", "sensory_fanout", "inter_fanout", "motor_fanin"]
        ncp += ["recurrent_command_synapses"]
        missing = [name for name in ncp if getattr(self, name) is None]
        if self.kind == "ncp" and (missing or self.output_size is None):
            missing += [] if self.output_size else ["output_size"]
            raise ValueError(f"an ncp wiring needs {', '.join(missing)}")
        if self.kind == "auto_ncp" and self.output_size is None:
            raise ValueError("an auto_ncp wiring needs output_size")
        if self.kind == "auto_ncp" and self.sparsity < 0.1:
            raise ValueError(f"an auto_ncp wiring needs a sparsity of at least 0.1, got {self.sparsity}")
        if self.kind not in ("random", "auto_ncp"):
            self.reject_idle(["sparsity"], "kind = random or auto_ncp")
        if self.kind != "fully_connected":
            self.reject_idle(["self_connections"], "kind = fully_connected")
        if self.kind != "ncp":
            self.reject_idle(ncp, "kind = ncp")
        return self


class ModelConfig(Settings):
    """Shape and mathematics of a `LiquidTimeConstantNetwork`."""

    input_size: Positive = Field(description="Vocabulary: number of token ids.")
    hidden_size: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=256, description="Width D of the model; neurons of a plain layer."
    )
    output_size: Positive | None = Field(
        default=None, description="Vocabulary of the output layer; input_size if not given."
    )
    steps: Annotated[int, Field(ge=1, le=1000)] = Field(default=6, description="Solver sub-steps per token.")
    step_size: Annotated[float, Field(gt=0, le=1000)] = Field(
        default=1 / 6, description="Length of a sub-step in token time; consecutive tokens are 1.0 apart."
    )
    solver: Solver = Field(default=Solver.semi_implicit, description="How a sub-step is taken.")
    adaptive: bool = Field(
        default=True, description="Liquid time constants, C / G(x, u). False freezes them at C / g_leak (a CT-RNN)."
    )
    coupling: Coupling = Field(default=Coupling.full, description="What the conductances of a neuron depend on.")
    contractive: bool = Field(
        default=False,
        description="Bound the feedback of each neuron so that every token map contracts (diagonal coupling with "
        "semi_implicit or exponential): the influence of the initial state decays, and the parallel scan converges.",
    )
    wiring: WiringConfig | None = Field(default=None, description="Which synapses exist (synaptic, cfc).")
    cfc_mode: Literal["default", "pure", "no_gate"] = Field(
        default="default", description="Variant of the closed form (cfc)."
    )
    cfc_backbone_units: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=128, description="Width of the hidden layers before the heads (cfc without wiring)."
    )
    cfc_backbone_layers: Annotated[int, Field(ge=0, le=16)] = Field(
        default=1, description="Hidden layers before the heads (cfc without wiring)."
    )
    block: Literal["plain", "liquid"] = Field(
        default="plain",
        description="plain: layers one after the other. liquid: residual blocks with norm, convolution and gate.",
    )
    num_layers: Annotated[int, Field(ge=1, le=256)] = Field(default=1, description="Layers or blocks.")
    expansion: Annotated[float, Field(gt=0, le=64)] = Field(
        default=2.0, description="Neurons of a liquid block, in multiples of hidden_size."
    )
    conv_width: Annotated[int, Field(ge=1, le=64)] = Field(
        default=4, description="Tokens that the causal convolution of a liquid block sees; 1 leaves it out."
    )
    tie_embeddings: bool = Field(default=False, description="Share one matrix between embedding and output layer.")
    head: Literal["full", "adaptive"] = Field(
        default="full", description="Output layer: one softmax, or an adaptive softmax for large vocabularies."
    )
    adaptive_cutoffs: tuple[Positive, ...] = Field(
        default=(), description="Where the clusters of an adaptive head begin, by frequency rank; chosen if empty."
    )
    learned_initial_state: bool = Field(
        default=False, description="Learn the state before the first token; False starts from the zero state."
    )
    dropout: Probability = Field(
        default=0.0,
        description="Fraction of each layer's features dropped in training, the same ones in a whole window.",
    )
    embedding_dropout: Probability = Field(default=0.0, description="The same for the embedding's features.")

    @model_validator(mode="after")
    def _fits(self) -> "ModelConfig":
        vocabulary = self.output_size or self.input_size
        if self.tie_embeddings and vocabulary != self.input_size:
            raise ValueError(f"tie_embeddings needs output_size = input_size, got {vocabulary} and {self.input_size}")
        if self.tie_embeddings and self.head == "adaptive":
            raise ValueError("tie_embeddings does not go with head = adaptive, whose matrices differ in shape")
        cutoffs = self.adaptive_cutoffs
        if list(cutoffs) != sorted(set(cutoffs)) or (cutoffs and cutoffs[-1] >= vocabulary):
            raise ValueError(f"adaptive_cutoffs must increase and stay below {vocabulary}, got {list(cutoffs)}")
        if self.contractive and self.coupling is not Coupling.diagonal:
            raise ValueError(f"contractive goes with coupling = diagonal, not {self.coupling}")
        if self.contractive and self.solver not in (Solver.semi_implicit, Solver.exponential):
            raise ValueError(f"contractive goes with solver = semi_implicit or exponential, not {self.solver}")
        clusters = len(cutoffs) or 2
        if self.head == "adaptive" and self.hidden_size < 4**clusters:
            raise ValueError(
                f"an adaptive head of {clusters} clusters needs hidden_size >= {4**clusters}, got {self.hidden_size}"
            )
        if self.wiring and self.neurons > MOST_WIRED:
            raise ValueError(f"a wiring is drawn for at most {MOST_WIRED:,} neurons, got {self.neurons:,}")
        if self.wiring and self.coupling not in (Coupling.synaptic, Coupling.cfc):
            raise ValueError(f"wiring goes with coupling = synaptic or cfc, not {self.coupling}")
        self._reject_settings_without_effect()
        return self

    def _reject_settings_without_effect(self) -> None:
        backbone = ["cfc_backbone_units", "cfc_backbone_layers"]
        if self.coupling is not Coupling.cfc:
            self.reject_idle(["cfc_mode", *backbone], "coupling = cfc")
        elif self.wiring:
            self.reject_idle(backbone, "a cfc without wiring")
        elif not self.cfc_backbone_layers:
            self.reject_idle(["cfc_backbone_units"], "cfc_backbone_layers >= 1")
        if self.block == "plain":
            self.reject_idle(["expansion", "conv_width"], "block = liquid")
        if self.head == "full":
            self.reject_idle(["adaptive_cutoffs"], "head = adaptive")

    @property
    def vocabulary(self) -> int:
        """V of the output layer."""
        return self.output_size or self.input_size

    @property
    def neurons(self) -> int:
        """N of one layer."""
        return self.hidden_size if self.block == "plain" else round(self.expansion * self.hidden_size)


class DataConfig(Settings):
    """Which text, and how it becomes tokens."""

    data: Annotated[
        str | tuple[str, ...], BeforeValidator(lambda v: v[0] if isinstance(v, list | tuple) and len(v) == 1 else v)
    ] = Field(
        default="auto",
        description="Corpus: auto (WikiText-2, or the embedded corpus when no hub answers), wikitext-2, embedded, "
        "a file, a folder, or a dataset id of the Hugging Face hub; several files and folders are read in this order.",
    )
    include: Annotated[tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)] = Field(
        default=(),
        description="Patterns of the files of a folder to read, as *.py or notes/*.txt; all text if not given.",
    )
    tokenizer: str = Field(
        default="auto",
        description="auto, bert, char, byte, wordpiece (trained here), or the path or hub id of a tokenizer.",
    )
    vocab_size: Annotated[int, Field(ge=300, le=1_000_000)] = Field(
        default=8192, description="Subword tokens of a wordpiece tokenizer trained on the corpus."
    )
    text_column: Annotated[str, Field(min_length=1)] = Field(default="text", description="Column of the text.")
    template: str | None = Field(default=None, description="Text of a row with columns in braces: '{user}: {message}'.")
    streaming: Literal["auto", "always", "never"] = Field(
        default="auto", description="Keep only a hub dataset's text while it streams by; auto: from 2 GB of files."
    )
    valid: str | None = Field(
        default=None, description="File or folder to validate on, in place of a part of the corpus."
    )
    valid_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.1,
        description="End of the corpus that is held out if it has no validation split; at most 5 M characters.",
    )
    encoding_errors: Literal["strict", "replace", "ignore"] = Field(
        default="strict", description="Bytes that are not UTF-8."
    )

    @property
    def sources(self) -> tuple[str, ...]:
        """The names, files and folders of `data`."""
        return (self.data,) if isinstance(self.data, str) else self.data

    @model_validator(mode="after")
    def _readable(self) -> "DataConfig":
        if not self.sources or not all(self.sources) or len(set(self.sources)) < len(self.sources):
            raise ValueError(f"data names nothing, or {max(self.sources or ('',), key=self.sources.count)!r} twice")
        if self.template is not None and self.text_column != "text":
            raise ValueError("text_column and template exclude each other")
        return self


class TrainConfig(Settings):
    """How a model is trained."""

    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=16, description="Batch rows: streams of text that are read in parallel, over all processes."
    )
    sequence_length: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=64, description="Tokens of a window; the state is carried from window to window, gradients are not."
    )
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=1, description="Parts in which the rows of a batch are read one after the other, to need less memory."
    )
    epochs: Positive | None = Field(default=None, description="Passes over the training text.")
    max_steps: Positive | None = Field(default=None, description="Optimizer steps.")
    time_budget: Annotated[float, Field(gt=0, le=1e12)] | None = Field(
        default=None,
        description="Seconds of training, validation included; the learning rate ends its schedule with it.",
    )
    init: str | None = Field(
        default=None,
        description="Run to begin from (or demo): its network, and its tokenizer if none is given.",
    )
    state_reset_prob: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="Probability of resetting a row's state before a window, so that the model also learns to start "
        "from the initial state; 1 carries no state at all.",
    )
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw", description="adamw, or muon for the matrices of the layers with adamw for the rest."
    )
    learning_rate: Annotated[float, Field(gt=0, le=10)] = Field(
        default=6e-3, description="Peak learning rate of AdamW."
    )
    muon_learning_rate: Annotated[float, Field(gt=0, le=10)] = Field(
        default=0.02, description="Peak learning rate of Muon."
    )
    min_learning_rate_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.02, description="Learning rate at the end, as a fraction of the peak."
    )
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.03, description="Fraction of the run in which the rate rises."
    )
    weight_decay: Annotated[float, Field(ge=0, le=10)] = Field(
        default=0.1, description="Decay of the matrices; C, g_leak, E, tau, biases and norms are never decayed."
    )
    beta1: Probability = Field(default=0.9, description="AdamW: decay of the mean of the gradients.")
    beta2: Probability = Field(default=0.98, description="AdamW: decay of the mean of their squares.")
    max_grad_norm: Annotated[float, Field(ge=0, le=1e30)] = Field(
        default=1.0, description="Largest norm of the gradient; 0 does not clip."
    )
    eval_steps: Positive | None = Field(
        default=None, description="Steps between validations; about twenty in a run if not given."
    )
    sample_prompt: str = Field(default="", description="Text that the sample shown at each validation continues.")
    sample_tokens: Annotated[int, Field(ge=0, le=100_000)] = Field(
        default=120, description="Tokens of the sample shown at each validation; 0 shows none."
    )
    save_steps: Positive | None = Field(
        default=None, description="Steps between checkpoints; at each validation if not given."
    )
    save_minutes: Annotated[float, Field(gt=0, le=1e9)] | None = Field(
        default=None,
        description="Minutes after the last checkpoint at which another is made at the latest; ten if save_steps is "
        "not given either.",
    )
    save_total_limit: Positive = Field(default=2, description="Newest checkpoints that are kept.")
    keep_best: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        default=0,
        description="Older checkpoints that are kept as well: those of the lowest validation losses. (The best weights "
        "are always kept.)",
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(default=0, description="Seed of weights, dropout and samples.")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:N or mps.")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        default="no", description="Autocast of the matrix products; states and time constants stay float32."
    )
    threads: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="CPU threads; all cores if not given."
    )
    report_to: Annotated[
        tuple[Literal["tensorboard", "trackio", "wandb"], ...],
        BeforeValidator(lambda given: given.split(",") if isinstance(given, str) else given),
    ] = Field(
        default=(),
        description="Trackers, if installed, that log what metrics.jsonl holds; several as wandb,tensorboard.",
    )


class MemoryConfig(Settings):
    """The n-gram memory of the training text (see `memory`)."""

    enabled: bool = Field(
        False, description="Keep an n-gram memory of the training text and mix it with the network's distribution."
    )
    order: Annotated[int, Field(ge=0, le=15)] | None = Field(
        None, description="Tokens of its longest context; if not given, 8 for characters and bytes, 5 for subwords."
    )
    max_megabytes: Annotated[float, Field(gt=0, le=4096)] = Field(
        64.0, description="Size of its file; rare contexts are removed until it fits."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "MemoryConfig":
        if not self.enabled:
            self.reject_idle(["order", "max_megabytes"], "memory.enabled = true")
        return self


class SamplingConfig(Settings):
    """How text is drawn from a model's output distribution.

    Limits are those of the arithmetic that uses the values: float32 for the logits, int64 in the native decoder.
    """

    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] = Field(default=200, description="Tokens to write; 0 only reads.")
    temperature: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.8, description="Divides the logits; below 1 sharper, 0 always takes the likeliest token."
    )
    top_k: Annotated[int, Field(ge=0, lt=2**31)] = Field(default=0, description="Only the k likeliest; 0 keeps all.")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Only the likeliest tokens that together reach probability p."
    )
    min_p: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="Only tokens at least min_p times as likely as the likeliest."
    )
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] = Field(
        default=1.0, description="Above 1: tokens already seen become less likely (Keskar et al. 2019)."
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        default=None, description="Same seed, same text; drawn and reported if not given."
    )
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=(), description="Texts that end generation.")
    ignore_eos: bool = Field(
        default=False,
        description="Never draw the token that ends a document; text then ends at max_tokens or a stop string.",
    )
    num_samples: Annotated[int, Field(ge=1, le=4096)] = Field(default=1, description="Texts to write from one prompt.")

    @property
    def greedy(self) -> bool:
        """True if the likeliest token is always taken: temperature 0, or one that float32 cannot divide by."""
        return self.temperature < SMALLEST_NORMAL_FLOAT32


class RunConfig(Settings):
    """A whole training run: what a recipe file holds, and what the run directory keeps."""

    data: DataConfig = Field(default_factory=DataConfig)
    model: dict[str, Any] = Field(default_factory=dict, description="Settings of ModelConfig but its input_size.")
    train: TrainConfig = Field(default_factory=TrainConfig)
    memory: MemoryConfig = Field(default_factory=MemoryConfig)

    @model_validator(mode="after")
    def _model_is_valid(self) -> "RunConfig":
        for derived in ("input_size", "output_size"):
            if derived in self.model:
                raise ValueError(f"model.{derived} comes from the tokenizer and cannot be set")
        self.model_config_for(1_000_000_000)
        return self

    def model_config_for(self, vocabulary: int) -> ModelConfig:
        """The model's configuration once the tokenizer, and with it the vocabulary, is known."""
        return ModelConfig.parse({**self.model, "input_size": vocabulary}, "model")


class DynamicConfig(Settings):
    """Dynamic evaluation (see `evaluation.adaptive`)."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(
        default=3e-4, description="Step size of a weight whose gradient has the mean magnitude."
    )
    decay: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1e-3, description="Decay towards the trained weights after each segment, for a weight of mean gradient."
    )
    segment: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=16, description="Tokens that are scored before the weights are updated on them."
    )


class CacheConfig(Settings):
    """A continuous cache (see `evaluation.adaptive`)."""

    size: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=2000, description="Last tokens that are kept; memory grows with it."
    )
    theta: Annotated[float, Field(ge=0, le=1000)] = Field(
        default=20.0, description="Sharpness of the weights by similarity of contexts; 0 weighs all contexts alike."
    )
    weight: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.2, description="Weight lambda of the cache in the mixture with the network."
    )


def current_run_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run that an earlier version may have written, under the names of today."""
    groups: dict[str, type[Settings]] = {"data": DataConfig, "model": ModelConfig, "train": TrainConfig}
    return {
        name: with_current_names(values, groups[name]) if isinstance(values, dict) and name in groups else values
        for name, values in settings.items()
    }
