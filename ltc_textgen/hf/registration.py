"""Registers the network with transformers the moment transformers' auto classes are imported, and not before.

`import ltc_textgen` must make `AutoModelForCausalLM.from_pretrained(run)` work, but importing transformers takes a
second that `ltc --help` does not have. So an import hook waits for the two modules that hold the registries.
"""

import importlib
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def _register_config(module: ModuleType) -> None:
    from ltc_textgen.hf.config import LTCConfig

    module.AutoConfig.register(LTCConfig.model_type, LTCConfig, exist_ok=True)


def _register_model(module: ModuleType) -> None:
    from ltc_textgen.hf import tasks
    from ltc_textgen.hf.config import LTCConfig
    from ltc_textgen.hf.modeling import LiquidTimeConstantNetwork

    module.AutoModel.register(LTCConfig, tasks.LTCModel, exist_ok=True)
    module.AutoModelForSequenceClassification.register(LTCConfig, tasks.LTCForSequenceClassification, exist_ok=True)
    module.AutoModelForTokenClassification.register(LTCConfig, tasks.LTCForTokenClassification, exist_ok=True)
    module.AutoModelForCausalLM.register(LTCConfig, LiquidTimeConstantNetwork, exist_ok=True)
    # By these names pipelines know what they support, and the Trainer whose labels to shift when it smooths them.
    module.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault(LTCConfig.model_type, LiquidTimeConstantNetwork.__name__)


def _register_tokenizer(module: ModuleType) -> None:
    from ltc_textgen.hf.config import LTCConfig
    from ltc_textgen.hf.tokenizer import LTCTokenizer

    module.AutoTokenizer.register(LTCConfig, tokenizer_class=LTCTokenizer, exist_ok=True)


REGISTRIES = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_model,
    "transformers.models.auto.tokenization_auto": _register_tokenizer,
}


class _Registering(Loader):
    def __init__(self, loader: Loader, register: Callable[[ModuleType], None]) -> None:
        self._loader, self._register = loader, register

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._register(module)


class _Finder(MetaPathFinder):
    """Lets the ordinary finders find a registry's module, and registers once it has run."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in REGISTRIES:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Registering(spec.loader, REGISTRIES[name])
                return spec
        return None


def install() -> None:
    """Register now where transformers is imported already, and otherwise when it is."""
    for name, register in REGISTRIES.items():
        if name in sys.modules:
            register(importlib.import_module(name))
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
