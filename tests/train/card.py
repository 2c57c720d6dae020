"""A GPU that is only pretended: its tensors say that they are on cuda:0, and their numbers are computed on the CPU.

    with Card() as card: …        torch finds one GPU; what is moved or made there meets only its like, as on a real one
    Card(gib=1)                   one with so much memory; what does not fit raises torch.OutOfMemoryError

What a real GPU refuses is refused: an operation on tensors of both devices, a generator of the CPU for numbers drawn on the GPU, numpy and
files that read the GPU's memory. Kernels, their roundings and speed are the CPU's.

Editing rules: what is allowed here must be allowed by CUDA; autograd sees CPU tensors, for without CUDA it knows no stream to work on.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any, Self
from unittest.mock import patch

import peft  # noqa: F401 - brings bitsandbytes, which would look for real kernels if there seemed to be a GPU
import torch
from torch.library import _scoped_library
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode

PLACE = torch.device("cuda", 0)
# What CUDA's autocast computes in fp32 and the CPU's leaves as it is.
WIDENED = (
    "layer_norm",
    "group_norm",
    "rms_norm",
    "softmax.int",
    "linalg_vector_norm",
    "norm.ScalarOpt_dim",
    "sum.dim_IntList",
    "sum",
    "cumsum",
    "exp",
    "rsqrt",
    "reciprocal",
    "pow.Tensor_Scalar",
)
# What CUDA computes in one precision, where the CPU lets weights be wider.
NORMS = {"native_layer_norm", "native_group_norm", "native_batch_norm", "_fused_rms_norm"}
# What takes tensors of both devices, and what takes indices of the CPU.
COPIES, INDEXED = {"copy_", "_foreach_copy_", "_to_copy"}, {"index", "index_put", "index_put_", "_index_put_impl_"}


class OnCard(torch.Tensor):
    """A tensor of the pretended GPU."""

    held: torch.Tensor
    is_cuda = True
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Self:
        shape = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        # A view is no tensor of inference mode if what it looks at is none.
        plain = torch.inference_mode(False) if torch.is_inference_mode_enabled() and not held.is_inference() else nullcontext()
        with plain:
            made = torch.Tensor._make_wrapper_subclass(cls, held.shape, **shape, dtype=held.dtype, device=held.device)
        made.held = held
        if Card.now:
            Card.now.count(held)
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:
        return PLACE

    @property
    def data(self) -> torch.Tensor:
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, value: OnCard) -> None:
        torch.Tensor.data.__set__(self, value)
        self.held = value.held

    def __repr__(self, **_: Any) -> str:
        return f"{self.held} on {PLACE}"

    def get_device(self) -> int:
        return PLACE.index

    def tolist(self) -> Any:
        return self.held.tolist()

    def cpu(self) -> torch.Tensor:
        return self.to("cpu")

    def cuda(self, *_: Any, **__: Any) -> torch.Tensor:
        return self

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
        )

    __array__ = numpy

    def pin_memory(self, *_: Any) -> torch.Tensor:
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")


PLAIN_TO, PLAIN_ALIKE = torch.Tensor.to, torch._has_compatible_shallow_copy_type


def moved(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Tensor.to."""
    kwargs.pop("copy", None)
    if args and isinstance(args[0], torch.Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
    layouts = {} if layout is None else {"memory_format": layout}
    made = PLAIN_TO(tensor, dtype, **layouts) if dtype else PLAIN_TO(tensor, **layouts) if layouts else tensor
    there = isinstance(tensor, OnCard)
    return made if device is None or (device.type == "cuda") is there else Move.apply(made, not there)


class Move(torch.autograd.Function):
    """To the GPU or from it; gradients take the way back."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, up: bool) -> torch.Tensor:
        ctx.up = up
        return OnCard(values.detach().clone()) if up else values.held.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return Move.apply(gradients[0], not ctx.up), None


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives, and where."""
    given = list(tensors((*args, *kwargs.values())))
    card = [tensor for tensor in given if isinstance(tensor, OnCard)]
    # What autograd's own formulas ask for is the CPU, for which they take the device of these tensors.
    if not card and torch.device(kwargs.get("device") or "cpu").type != "cuda":
        return func(*args, **kwargs)
    name = func._schema.name.removeprefix("aten::")
    if card and len(card) < len(given):
        refuse(name, func, given)
    if name in NORMS and len({tensor.dtype for tensor in card}) > 1:
        raise RuntimeError(f"expected scalar type {card[0].dtype} but found {card[1].dtype} ({name})")
    if kwargs.get("generator") is not None:
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": torch.device("cpu"), "pin_memory": False}
    result = func(
        *mapped(args, lambda t: t.held, OnCard), **{key: mapped(value, lambda t: t.held, OnCard) for key, value in kwargs.items()}
    )
    if name == "copy_":
        return args[0]
    known = {id(tensor.held): tensor for tensor in card}
    return mapped(result, lambda t: known[id(t)] if id(t) in known else OnCard(t))


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Those in a value of arguments."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)


def mapped(value: Any, change: Callable[[Any], Any], kind: type = torch.Tensor) -> Any:
    """The same with other tensors."""
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(item, change, kind) for item in value)
    return change(value) if isinstance(value, kind) else value


def refuse(name: str, func: Any, given: Sequence[torch.Tensor]) -> None:
    """Raise what CUDA raises if a tensor of the CPU takes part; a single number may, in what works number by number into another place."""
    for place, tensor in enumerate(given):
        number = not tensor.dim() and torch.Tag.pointwise in func.tags and (place > 0 or not name.endswith("_"))
        if not isinstance(tensor, OnCard) and name not in COPIES and not (number or (place > 0 and name in INDEXED)):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({name})"
            )


class Card(TorchDispatchMode):
    """The machine with that GPU."""

    now: Card | None = None

    def __init__(self, gib: float = 80.0) -> None:
        super().__init__()
        self.total, self.used, self.peak = int(gib * 2**30), 0, 0
        self._storages: dict[int, int] = {}
        self._patches = ExitStack()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})

    def __enter__(self) -> Self:
        _device_constructors()  # torch keeps these functions, which must be its own
        for target, name, value in self.patches():
            self._patches.enter_context(patch.object(target, name, value))
        library = self._patches.enter_context(_scoped_library("aten", "IMPL"))
        for name in WIDENED:
            library.impl(name, partial(widened, getattr(torch.ops.aten, name.partition(".")[0])), "AutocastCPU")
        Card.now = self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        Card.now = None
        self._patches.close()

    def count(self, held: torch.Tensor) -> None:
        """Take the memory of a tensor, or raise what torch raises if there is not so much."""
        storage = held.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._storages:
            if self.used + size > self.total:
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")
            self.used += size
            self.peak = max(self.peak, self.used)
        self._storages[key] = self._storages.get(key, 0) + 1
        weakref.finalize(held, self.free, key, size)

    def free(self, key: int, size: int) -> None:
        """Give the memory back with the last tensor that lies there."""
        self._storages[key] -= 1
        if not self._storages[key]:
            del self._storages[key]
            self.used -= size

    def patches(self) -> Iterable[tuple[Any, str, Any]]:
        """What is told of the GPU: (module, name, instead)."""
        about = SimpleNamespace(name="pretended", total_memory=self.total, major=9, minor=0)
        told: dict[str, Callable[..., Any]] = {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "is_bf16_supported": lambda *_: True,
            "get_device_properties": lambda *_: about,
            "get_device_capability": lambda *_: (9, 0),
            "mem_get_info": lambda *_: (self.total - self.used, self.total),
            "max_memory_allocated": lambda *_: self.peak,
            "reset_peak_memory_stats": lambda *_: setattr(self, "peak", self.used),
            "set_per_process_memory_fraction": lambda share, *_: setattr(self, "total", int(self.total * share)),
            "get_rng_state": lambda *_: torch.get_rng_state(),
        }
        for name in ("_lazy_init", "empty_cache", "synchronize", "set_rng_state"):
            told[name] = lambda *_: None
        yield from ((torch.cuda, name, value) for name, value in told.items())
        yield torch, "_has_compatible_shallow_copy_type", alike
        yield torch.Tensor, "to", moved
        yield torch, "tensor", lambda values, device=None, plain=torch.tensor, **more: moved(plain(values, **more), device)
        yield torch.Tensor, "pin_memory", lambda tensor, *_: tensor
        for name in ("is_autocast_enabled", "get_autocast_dtype", "set_autocast_enabled", "set_autocast_dtype"):
            yield torch, name, on_cpu(getattr(torch, name))
        yield torch.autocast, "__init__", on_cpu(torch.autocast.__init__)


def widened(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """An operation under autocast, in fp32."""
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)):
        return call(*mapped(args, lambda t: t.float() if t.is_floating_point() else t, OnCard), **kwargs)


def alike(input: torch.Tensor, from_: torch.Tensor) -> bool:  # noqa: A002 - torch compares the names
    """torch._has_compatible_shallow_copy_type: whether a module may put one tensor into the other's place."""
    both = isinstance(input, OnCard), isinstance(from_, OnCard)
    return all(both) or (not any(both) and PLAIN_ALIKE(input, from_))


def on_cpu(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same call with the CPU in the GPU's place."""

    def swapped(value: Any) -> Any:
        return "cpu" if value == "cuda" else value

    return lambda *args, **kwargs: call(*map(swapped, args), **{name: swapped(value) for name, value in kwargs.items()})
