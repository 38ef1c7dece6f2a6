"""What the fused operators share."""

import torch

from ltc_textgen.shapes import Tensor


def is_plain(*tensors: Tensor) -> bool:
    """Whether a kernel may be called directly, past PyTorch's dispatcher.

    The way through the dispatcher costs tens of microseconds, more than the single token of a decoder. It is needed
    only where someone looks on: autograd, a compiler or tracer, a function transform, a dispatch mode.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active():
        return False
    return all(type(tensor) in (Tensor, torch.nn.Parameter) for tensor in tensors)
