"""The small networks that learn beside the frozen weights: LoRA, DoRA, LoHa and LoKr, on the layers that --targets names.

    check(base, …)            refuses targets and ranks that the base's layers do not allow, before it is loaded
    attach(family, options)   one adapter on each part that learns; always the same first weights for the same seed
    layers(part)              the layers that learn, by name
    updates(part)             what they add to the weights
    tensors / restore         the adapters' weights, as checkpoints keep them

A convolution wider than one pixel takes --conv-rank and --conv-alpha where they are given, which makes a LoRA a LoCon.

Editing rules: adapters are fp32 whatever the frozen weights are; the order of creation decides the first weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open

from lora.base import Base
from lora.ends import BadInput
from lora.family import Family
from lora.options import Options, UnetOptions

ADAPTER = "default"
LYCORIS = {"loha": LoHaConfig, "lokr": LoKrConfig}
# How likely a pass may leave out all outputs of a layer: there are some 10^6 layers and passes in a training.
RARELY = 1e-9
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


def ends_so(name: str, endings: Sequence[str]) -> bool:
    """Whether a layer's name is one of the endings, or ends with one after a dot."""
    return any(name == ending or name.endswith("." + ending) for ending in endings)


def wide_endings(part: torch.nn.Module, targets: Sequence[str]) -> list[str]:
    """How the names of those targets end that are convolutions wider than one pixel."""
    wide = {
        name.rsplit(".", 1)[-1]
        for name, module in part.named_modules()
        if isinstance(module, torch.nn.Conv2d) and max(module.kernel_size) > 1 and ends_so(name, targets)
    }
    return sorted(wide)


def settings(options: Options, part: torch.nn.Module, targets: Sequence[str], rank: int, alpha: float) -> dict[str, Any]:
    """What PEFT is told of one part, whatever the network."""
    common: dict[str, Any] = {"r": rank, "target_modules": list(targets), **dropout(options)}
    if isinstance(options, UnetOptions) and options.conv_rank and (wide := wide_endings(part, targets)):
        common["rank_pattern"] = dict.fromkeys(wide, options.conv_rank)
        common["alpha_pattern"] = dict.fromkeys(wide, options.conv_alpha or alpha * options.conv_rank / rank)
    return {**common, "alpha" if options.network in LYCORIS else "lora_alpha": alpha}


def dropout(options: Options) -> dict[str, Any]:
    """--dropout as each kind of network has it: LoRA and DoRA leave out inputs of their layers, LoHa and LoKr outputs."""
    if options.network == "lokr":
        # What is left counts for what is left out, as everywhere else.
        return {"rank_dropout": options.dropout, "rank_dropout_scale": True}
    return {"rank_dropout" if options.network == "loha" else "lora_dropout": options.dropout}


def configuration(options: Options, common: Mapping[str, Any]) -> PeftConfig:
    """The same as PEFT's own object."""
    if options.network in LYCORIS:
        return LYCORIS[options.network](**common)
    return LoraConfig(use_dora=options.network == "dora", **common)


def sizes(options: Options, family: Family | type[Family], net: bool) -> tuple[Sequence[str], int, float]:
    """(how the names of the layers end that learn, their rank, their alpha) in the net or in a text encoder."""
    if net:
        return family.TARGETS[options.targets], options.rank, options.strength
    rank = options.text_rank or options.rank
    return TEXT_TARGETS, rank, options.text_alpha or options.strength * rank / options.rank


def check(base: Base, family: type[Family], options: Options) -> None:
    """Refuse what a base's layers do not allow by the headers of its files; a single file is looked at once it is loaded."""
    if base.path.is_file():
        return
    for part in (base.kind.net, *(family.LEARNING_TEXTS if options.text_lr else ())):
        shapes = {}
        for path in (base.path / part).glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                names = [name for name in file.keys() if name.endswith(".weight")]  # noqa: SIM118 - it is no mapping
                shapes |= {name.removesuffix(".weight"): file.get_slice(name).get_shape() for name in names}
        refuse(shapes, options, family, part == base.kind.net)


def shape_of(module: torch.nn.Module) -> tuple[int, ...]:
    """The shape of a layer's weight, even if it is held packed."""
    if isinstance(module, torch.nn.Linear):
        return module.out_features, module.in_features
    weight = getattr(module, "weight", None)
    return () if weight is None else tuple(weight.shape)


def refuse(shapes: Mapping[str, Sequence[int]], options: Options, family: Family | type[Family], net: bool) -> None:
    """BadInput where no layer of a part is a target, or one is smaller than the rank; a LoKr so large is a whole matrix instead."""
    targets, rank, _ = sizes(options, family, net)
    chosen = {n: shape for n, shape in shapes.items() if len(shape) > 1 and ends_so(n, targets) and n != family.EXCLUDED}
    if not chosen:
        raise BadInput(f"--targets {options.targets}: the base has no layer that ends in {', '.join(targets)}")
    if options.network in LYCORIS:
        narrow = min(chosen, key=lambda name: chosen[name][0])
        if options.dropout ** chosen[narrow][0] > RARELY:
            raise BadInput(
                f"--dropout is {options.dropout}: the base's layer {narrow} has {chosen[narrow][0]} outputs, and {options.network} would"
                " leave out all of them now and then, of which no number comes; take less"
            )
    if options.network == "lokr":
        return
    flag = "--rank" if net or not options.text_rank else "--text-rank"
    conv_rank = getattr(options, "conv_rank", 0)
    for name, (rows, *inputs) in chosen.items():
        asked, most = (flag, rank), min(rows, math.prod(inputs))
        if conv_rank and max(inputs[1:], default=1) > 1:
            asked = "--conv-rank", conv_rank
        if asked[1] > most:
            shape = f"{rows} outputs and {math.prod(inputs)} inputs"
            raise BadInput(
                f"{asked[0]} is {asked[1]}: the base's layer {name} has {shape}, and no update of it a rank above {most}"
            )


def attach(family: Family, options: Options) -> None:
    """Add the adapters; their first weights follow from the seed."""
    torch.manual_seed(options.seed)
    for part in family.parts().values():
        net = part is family.net
        refuse({name: shape_of(module) for name, module in part.named_modules() if shape_of(module)}, options, family, net)
        targets, rank, alpha = sizes(options, family, net)
        if net and ends_so(family.EXCLUDED, targets):
            targets = [name for name, _ in part.named_modules() if ends_so(name, targets) and name != family.EXCLUDED]
        common = settings(options, part, targets, rank, alpha)
        inject_adapter_in_model(configuration(options, common), part, ADAPTER)
        for parameter in part.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        exact_strengths(part)
        part.eval()  # new modules begin as learning ones, whatever they were added to


def exact_strengths(part: torch.nn.Module) -> None:
    """Let DoRA layers begin with the strengths of their weights: PEFT rounds these to the precision of the weights."""
    for layer in layers(part).values():
        held, base = getattr(layer, "lora_magnitude_vector", {}), layer.get_base_layer()
        if ADAPTER in held and isinstance(base, torch.nn.Linear) and base.weight.dtype != torch.float32:
            held[ADAPTER].weight.data = base.weight.data.float().norm(dim=1)


def layers(part: torch.nn.Module) -> dict[str, Any]:
    """The layers that learn, by name."""
    return {name: module for name, module in part.named_modules() if isinstance(module, BaseTunerLayer)}


@dataclass(frozen=True, slots=True)
class Updates(Mapping[str, torch.Tensor]):
    """Updates by layer, each made when it is asked for: all of them at once would be as large as the model in fp32."""

    makers: Mapping[str, Callable[[], torch.Tensor]]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.makers)

    def __len__(self) -> int:
        return len(self.makers)

    def behind(self, prefix: str) -> dict[str, Callable[[], torch.Tensor]]:
        """The makers under longer names."""
        return {f"{prefix}.{name}": maker for name, maker in self.makers.items()}


def updates(part: torch.nn.Module) -> Updates:
    """What each layer adds to its weight, (out, in · kernel), on the CPU; a DoRA layer's own strength is beside it."""
    makers: dict[str, Callable[[], torch.Tensor]] = {}
    for name, layer in layers(part).items():
        makers[name] = partial(delta, layer)
        if "lora_magnitude_vector" in weights(layer):
            makers[f"{name}.magnitude"] = partial(magnitude, layer)
    return Updates(makers)


def magnitude(layer: Any) -> torch.Tensor:
    """The strength of each output of a DoRA layer."""
    return weights(layer)["lora_magnitude_vector"].flatten()


def weights(layer: Any) -> dict[str, torch.Tensor]:
    """The weights of a layer's one adapter by PEFT's names, fp32, on the CPU."""
    (adapter,) = layer.scaling.keys()
    held = {name: getattr(layer, name) for name in layer.adapter_layer_names if adapter in getattr(layer, name, ())}
    return {name: getattr(of[adapter], "weight", of[adapter]).detach().cpu().float() for name, of in held.items()}


def delta(layer: Any) -> torch.Tensor:
    """One layer's update as PEFT defines it; computed here because a GPU's faster products would round it."""
    value, scaling = weights(layer), float(next(iter(layer.scaling.values())))
    if "lora_A" in value:
        return scaling * (value["lora_B"].flatten(1) @ value["lora_A"].flatten(1))
    if "hada_w1_a" in value:
        return scaling * (value["hada_w1_a"] @ value["hada_w1_b"]) * (value["hada_w2_a"] @ value["hada_w2_b"])
    second = value["lokr_w2"] if "lokr_w2" in value else value["lokr_w2_a"] @ value["lokr_w2_b"].flatten(1)
    return scaling * torch.kron(value["lokr_w1"], second.flatten(1))


def tensors(family: Family) -> dict[str, torch.Tensor]:
    """The adapters' weights; those of a text encoder begin with its name."""
    found = dict(get_peft_model_state_dict(family.net))
    for name, encoder in family.encoders.items():
        found |= {f"{name}:{key}": value for key, value in get_peft_model_state_dict(encoder).items()}
    return found


def restore(family: Family, saved: Mapping[str, torch.Tensor]) -> None:
    """Put saved weights back."""
    set_peft_model_state_dict(family.net, {key: value for key, value in saved.items() if ":" not in key})
    for name, encoder in family.encoders.items():
        own = {key.removeprefix(f"{name}:"): value for key, value in saved.items() if key.startswith(f"{name}:")}
        set_peft_model_state_dict(encoder, own)
