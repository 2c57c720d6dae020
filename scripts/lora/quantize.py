"""The frozen net in few bits: its blocks' linear layers hold int8, fp8 or nf4 and compute with the weights made anew each time.

    check(kind)                   BadInput if a package is missing
    quantize(net, kind, device)   replaces the layers one by one, so that the GPU never holds the large and the small weights at once

int8 and fp8 have one scale for each output, nf4 has one for each 64 weights. Adapters, norms, embeddings, convolutions, what lies outside
the blocks, and every layer that itself learns stay as they are.

Editing rules: the same weights give the same bits on every run; backward makes the weights anew rather than keep them alive; the
layers replaced are those inside an adapter's layer, whose own type PEFT would otherwise treat in its own way.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch.nn import functional

from lora.ends import BadInput

BLOCK = 64  # weights of nf4 that share a scale


def check(kind: str) -> None:
    """Find what is missing before anything expensive starts."""
    if kind == "nf4" and not available(kind):
        raise BadInput(
            "--quantize nf4 needs the package bitsandbytes; install it, or use int8 or fp8, which take twice the memory"
        )


def available(kind: str) -> bool:
    """Whether the packages of a kind are there."""
    return kind != "nf4" or importlib.util.find_spec("bitsandbytes") is not None


class Frozen(torch.nn.Module):
    """A linear layer that does not learn; `weight` has the shape of its weights and no content."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight = torch.empty_like(layer.weight, device="meta", requires_grad=False)
        self.bias = layer.bias

    def hold(self, **tensors: torch.Tensor) -> None:
        """Keep what the weights are made from."""
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """As nn.Linear does, in the precision of the pass."""
        if torch.is_autocast_enabled(values.device.type):
            values = values.to(torch.get_autocast_dtype(values.device.type))
        product = self.product(values)
        return product if self.bias is None else product + self.bias.to(product.dtype)

    def product(self, values: torch.Tensor) -> torch.Tensor:
        """Values times the weights."""
        raise NotImplementedError


class Rows(Frozen):
    """Weights as whole numbers (int8) or short floats (fp8), times one scale for each output."""

    KINDS = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}  # noqa: RUF012
    """kind → (type, its largest value)"""

    def __init__(self, layer: torch.nn.Linear, kind: str, device: torch.device) -> None:
        super().__init__(layer)
        dtype, largest = self.KINDS[kind]
        weight = layer.weight.detach().to(device).float()
        # A scale that bf16 holds exactly costs nothing when a pass in bf16 multiplies by it.
        scale = (weight.abs().amax(1) / largest).clamp_min(1e-30).bfloat16()
        codes = (weight / scale.float()[:, None]).clamp(-largest, largest)
        self.hold(codes=(codes.round() if kind == "int8" else codes).to(dtype), scale=scale)

    def product(self, values: torch.Tensor) -> torch.Tensor:
        return RowProduct.apply(values, self.codes, self.scale)  # type: ignore[no-any-return,no-untyped-call]


class RowProduct(torch.autograd.Function):
    """values · codesᵀ, each output times its scale. Codes are exact in bf16, so only sums round."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(codes, scale)
        return functional.linear(values, codes.to(values.dtype)) * scale.to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,), (codes, scale) = gradients, ctx.saved_tensors
        return (gradient * scale.to(gradient.dtype)) @ codes.to(gradient.dtype), None, None


class Blocks(Frozen):
    """Weights as 4-bit numbers at the places of a normal distribution (nf4); their scales are held in 8 bits."""

    def __init__(self, layer: torch.nn.Linear, device: torch.device) -> None:
        from bitsandbytes.functional import quantize_4bit

        super().__init__(layer)
        weight = layer.weight.detach().to(device)
        codes, state = quantize_4bit(weight, blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
        self.hold(codes=codes, scales=state.absmax, offset=state.offset, outer=state.state2.absmax, levels=state.state2.code)
        self.group = state.state2.blocksize

    def product(self, values: torch.Tensor) -> torch.Tensor:
        shape = (self.out_features, self.in_features, self.group)
        held = (self.codes, self.scales, self.offset, self.outer, self.levels)
        return BlockProduct.apply(values, shape, *held)  # type: ignore[no-any-return,no-untyped-call]


class BlockProduct(torch.autograd.Function):
    """values · weightsᵀ, with weights from bitsandbytes."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, shape: tuple[int, int, int], *held: torch.Tensor) -> torch.Tensor:
        ctx.shape = shape
        ctx.save_for_backward(*held)
        return functional.linear(values, dense(held, shape, values.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,), held = gradients, ctx.saved_tensors
        return gradient @ dense(held, ctx.shape, gradient.dtype), None, *(None for _ in held)


def dense(held: tuple[torch.Tensor, ...], shape: tuple[int, int, int], dtype: torch.dtype) -> torch.Tensor:
    """The weights of nf4, (out, in)."""
    codes, scales, offset, outer, levels = held
    made = torch.ops.bitsandbytes.dequantize_blockwise.default(scales, outer, levels, shape[2], torch.float32) + offset
    return torch.ops.bitsandbytes.dequantize_4bit.default(codes, made, BLOCK, "nf4", shape[:2], dtype)


def quantized(layer: torch.nn.Linear, kind: str, device: torch.device) -> Frozen:
    """The same layer in few bits, on the device."""
    made = Blocks(layer, device) if kind == "nf4" else Rows(layer, kind, device)
    return made.to(device)


def quantize(net: Any, kind: str, device: torch.device) -> None:
    """Replace the frozen linear layers of the net's blocks."""
    blocks = [module for module in net.modules() if type(module).__name__ in net._repeated_blocks]
    for holder in {id(module): module for block in blocks for module in block.modules()}.values():
        for name, layer in list(holder.named_children()):
            if type(layer) is torch.nn.Linear and not layer.weight.requires_grad:
                setattr(holder, name, quantized(layer, kind, device))
