"""Plain LoRA computed with half the operations: at one image a pass, a fast GPU waits for the CPU to ask for the next one.

    lean(family)   from now on the net computes in its own precision without autocast, and its adapters so, too

PEFT's layers under autocast cast what goes into every adapter and each of its weights one by one, and autocast widens what goes into
every norm. Here the weights are cast together, once a pass, with their scale; a linear layer and its update are one node of autograd, and
the update is added in place.

Editing rules: adapters stay fp32, and so do their gradients and whatever is kept of them; only what a pass multiplies with is narrow.
Other networks than LoRA, and a compiled net, which saves the same by itself, stay with PEFT and autocast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import Conv2d, Linear
from torch.nn import functional

from lora.family import Family
from lora.options import Options


class Product(torch.autograd.Function):
    """values · weightᵀ + bias + values · downᵀ · upᵀ; weight and bias are frozen."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, *matrices: torch.Tensor) -> torch.Tensor:
        down, up, weight, *bias = matrices
        rows = values.reshape(-1, values.shape[-1])
        inner = rows @ down.t()
        made = functional.linear(values, weight, *bias)
        made.view(-1, made.shape[-1]).addmm_(inner, up.t())
        ctx.save_for_backward(rows, inner, down, up, weight)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, inner, down, up, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[0]
        errors = gradients[0].reshape(-1, gradients[0].shape[-1])
        within = errors @ up
        back = (errors @ weight).addmm_(within, down).view(*gradients[0].shape[:-1], -1) if wanted else None
        rest = (None,) * (len(ctx.needs_input_grad) - 3)
        return back, within.t() @ rows, errors.t() @ inner, *rest


class Narrow(torch.autograd.Function):
    """All weights, each times its scale, in another precision; their gradients come back in that of the weights."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, scales: Sequence[float], *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.scales, ctx.dtype = scales, weights[0].dtype
        made = torch._foreach_mul(weights, scales)
        return tuple(made) if dtype == ctx.dtype else converted(made, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        made = converted(gradients, ctx.dtype)
        torch._foreach_mul_(made, ctx.scales)
        return None, None, *made


def converted(tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Copies in another precision, a few dozen with each operation of a GPU."""
    made = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(made, tensors)
    return tuple(made)


class LeanLinear(Linear):
    """A linear layer with its update."""

    pair: tuple[torch.Tensor, torch.Tensor]
    """The adapter's matrices of this pass, in its precision; the first one is scaled."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """As PEFT's layer, with as few operations as it takes."""
        (down, up), base, dropout = self.pair, self.base_layer, next(iter(self.lora_dropout.values()))
        if type(base) is torch.nn.Linear and not active(dropout):
            bias = () if base.bias is None else (base.bias,)
            return Product.apply(values, down, up, base.weight, *bias)  # type: ignore[no-any-return,no-untyped-call]
        return base(values) + functional.linear(functional.linear(dropout(values), down), up)


class LeanConv2d(Conv2d):
    """A convolution with its update."""

    pair: tuple[torch.Tensor, torch.Tensor]

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """As PEFT's layer: the first matrix is a convolution as the base's, the second looks at one pixel."""
        (down, up), base, dropout = self.pair, self.base_layer, next(iter(self.lora_dropout.values()))
        inner = functional.conv2d(dropout(values), down, None, base.stride, base.padding, base.dilation)
        return base(values) + functional.conv2d(inner, up)


LEAN = {Linear: LeanLinear, Conv2d: LeanConv2d}


def active(dropout: torch.nn.Module) -> bool:
    """Whether it leaves anything out now."""
    return isinstance(dropout, torch.nn.Dropout) and dropout.training


def suits(options: Options) -> bool:
    """Whether the net can compute so."""
    return options.network == "lora" and not options.compile


def lean(family: Family) -> None:
    """Change the net's adapted layers in place; their names and weights stay what they are."""
    layers = [layer for layer in family.net.modules() if type(layer) in LEAN]
    names = [next(iter(layer.scaling)) for layer in layers]
    weights, scales = [], []
    for layer, name in zip(layers, names, strict=True):
        layer.__class__ = LEAN[type(layer)]
        weights += [layer.lora_A[name].weight, layer.lora_B[name].weight]
        scales += [float(layer.scaling[name]), 1.0]

    def narrow(*_: object) -> None:
        """Before each pass: what it multiplies with."""
        made = Narrow.apply(family.dtype, scales, *weights)  # type: ignore[no-untyped-call]
        for number, layer in enumerate(layers):
            layer.pair = made[2 * number : 2 * number + 2]

    family.net.register_forward_pre_hook(narrow)
    family.lean = True
