"""Small models for the tests of the native decoder."""

import torch

from ltc_textgen.config import ModelConfig
from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork

VOCABULARY = 43


def make_model(seed: int = 0, vocabulary: int = VOCABULARY, **more: object) -> LiquidTimeConstantNetwork:
    """A model whose parameters are all away from where they start."""
    torch.manual_seed(seed)
    settings = {"hidden_size": 24, "coupling": "diagonal", "block": "liquid", "num_layers": 2, "steps": 1} | more
    model = LiquidTimeConstantNetwork.from_settings(ModelConfig(input_size=vocabulary, **settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "log_" not in name and parameter.ndim != 2:
                parameter.add_(0.2 * torch.randn_like(parameter))
            if "log_capacitance" in name:
                parameter.add_(2.0)  # the explicit solvers diverge for small ones
            if "self_weight" in name:
                parameter.add_(0.5 * torch.randn_like(parameter))
        if model.settings.head == "full":
            model.lm_head.projection.weight.mul_(3)
    return model


def ids_of(batch: int, tokens: int, seed: int = 0, vocabulary: int = VOCABULARY) -> torch.Tensor:
    """Random token ids, (batch, tokens)."""
    return torch.randint(vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(seed))
