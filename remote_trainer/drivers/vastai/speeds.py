"""How fast a training runs on each kind of GPU, and what the kinds are called. Pure.

Speed 1 is one RTX 3090. The others follow from two public figures of each GPU, its dense FP16 tensor throughput with FP32 accumulation
and its memory bandwidth: of a step on the RTX 3090, 60 % of the time is taken to go with the first, 35 % with the second, and 5 % with
neither. That is derived, not measured: good for comparing offers, and a profile that knows better says so (``gpu_speeds``).

Rules for editing: figures are the makers' own, without sparsity; names are the provider's spelling. A kind that is missing here is
judged by what its own machine claims, and not believed beyond ``_CLAIM_MAX``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_COMPUTE, _MEMORY, _REST = 0.60, 0.35, 0.05  # of a step's time on the reference
_EACH_MORE = 0.9  # of a GPU's speed is what each further one of a machine adds
_CLAIM_OF_REFERENCE = 45.0  # the provider's "dlperf" of one RTX 3090
_CLAIM_MIN, _CLAIM_MAX, _NO_CLAIM = 0.1, 2.0, 0.5


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind."""

    classes: tuple[str, ...]  # names for several kinds, in lower case
    tflops: float  # FP16 tensor, FP32 accumulation, dense
    gb_per_s: float

    @property
    def speed(self) -> float:
        """Return how much faster than the reference it is."""
        compute, memory = _REFERENCE.tflops / self.tflops, _REFERENCE.gb_per_s / self.gb_per_s
        return 1 / (_COMPUTE * compute + _MEMORY * memory + _REST)


_REFERENCE = Gpu(("ampere",), 71, 936)

#: By the provider's name.
GPUS: Mapping[str, Gpu] = {
    "RTX 3060": Gpu(("ampere",), 25.5, 360),
    "RTX 3060 Ti": Gpu(("ampere",), 32.4, 448),
    "RTX 3070": Gpu(("ampere",), 40.6, 448),
    "RTX 3070 Ti": Gpu(("ampere",), 43.5, 608),
    "RTX 3080": Gpu(("ampere",), 59.5, 760),
    "RTX 3080 Ti": Gpu(("ampere",), 68.2, 912),
    "RTX 3090": _REFERENCE,
    "RTX 3090 Ti": Gpu(("ampere",), 80, 1008),
    "RTX 4060 Ti": Gpu(("ada",), 44.1, 288),
    "RTX 4070": Gpu(("ada",), 58.3, 504),
    "RTX 4070S": Gpu(("ada",), 71, 504),
    "RTX 4070 Ti": Gpu(("ada",), 80.2, 504),
    "RTX 4070S Ti": Gpu(("ada",), 88.2, 672),
    "RTX 4080": Gpu(("ada",), 97.5, 717),
    "RTX 4080S": Gpu(("ada",), 104.4, 736),
    "RTX 4090D": Gpu(("ada",), 147, 1008),
    "RTX 4090": Gpu(("ada",), 165.2, 1008),
    "RTX 5060 Ti": Gpu(("blackwell",), 47.4, 448),
    "RTX 5070": Gpu(("blackwell",), 61.7, 672),
    "RTX 5070 Ti": Gpu(("blackwell",), 87.9, 896),
    "RTX 5080": Gpu(("blackwell",), 112.6, 960),
    "RTX 5090": Gpu(("blackwell",), 209.5, 1792),
    "RTX A4000": Gpu(("ampere",), 76.7, 448),
    "RTX A5000": Gpu(("ampere",), 111.1, 768),
    "RTX A6000": Gpu(("ampere",), 154.8, 768),
    "RTX 4000Ada": Gpu(("ada",), 107, 360),
    "RTX 5000Ada": Gpu(("ada",), 261, 576),
    "RTX 6000Ada": Gpu(("ada",), 364.2, 960),
    "RTX PRO 6000 S": Gpu(("blackwell",), 503.8, 1597),
    "RTX PRO 6000 WS": Gpu(("blackwell",), 503.8, 1792),
    "A10": Gpu(("ampere", "datacenter"), 125, 600),
    "A30": Gpu(("ampere", "datacenter"), 165, 933),
    "A40": Gpu(("ampere", "datacenter"), 149.7, 696),
    "A100 PCIE": Gpu(("a100", "ampere", "datacenter"), 312, 1935),
    "A100 SXM4": Gpu(("a100", "ampere", "datacenter"), 312, 2039),
    "L4": Gpu(("ada", "datacenter"), 121, 300),
    "L40": Gpu(("ada", "datacenter"), 181, 864),
    "L40S": Gpu(("ada", "datacenter"), 362, 864),
    "H100 PCIE": Gpu(("h100", "hopper", "datacenter"), 756, 2039),
    "H100 NVL": Gpu(("h100", "hopper", "datacenter"), 835, 3938),
    "H100 SXM": Gpu(("h100", "hopper", "datacenter"), 989, 3350),
    "GH200 SXM": Gpu(("hopper", "datacenter"), 989, 4000),
    "H200 NVL": Gpu(("h200", "hopper", "datacenter"), 835, 4800),
    "H200": Gpu(("h200", "hopper", "datacenter"), 989, 4800),
    "B200": Gpu(("b200", "blackwell", "datacenter"), 2250, 8000),
    "Tesla T4": Gpu(("turing", "datacenter"), 65, 320),
    "Tesla V100": Gpu(("volta", "datacenter"), 125, 900),
}

#: What several kinds are called together.
CLASSES: frozenset[str] = frozenset(name for gpu in GPUS.values() for name in gpu.classes)


def speed(name: str, gpus: int, claim: float, *, overrides: Mapping[str, float]) -> float:
    """Return the speed of a machine with so many GPUs of a kind; ``claim`` is the machine's own figure for all of them, 0 if it has none.

    ``overrides`` are a profile's speeds of one GPU, by the names that are wishes too: a kind's own name goes before its classes.
    """
    named = {tidy(wish): value for wish, value in overrides.items()}
    known = GPUS.get(name)
    kinds = (tidy(name), *(known.classes if known else ()))
    chosen = next((named[kind] for kind in kinds if kind in named), None)
    one = chosen or (known.speed if known else _claimed(claim / max(1, gpus)))
    return round(one * (1 + _EACH_MORE * (gpus - 1)), 3)


def _claimed(claim: float) -> float:
    return min(_CLAIM_MAX, max(_CLAIM_MIN, claim / _CLAIM_OF_REFERENCE)) if claim > 0 else _NO_CLAIM


def kinds_of(wishes: Iterable[str]) -> frozenset[str]:
    """Return the names that wishes mean, as the provider spells them: of classes, of kinds however written, and as they are."""
    spelled = {tidy(name): name for name in GPUS}
    found: set[str] = set()
    for wish in wishes:
        plain = tidy(wish)
        members = {name for name, gpu in GPUS.items() if plain in gpu.classes}
        found |= members or {spelled.get(plain, wish.replace("_", " ").strip())}
    return frozenset(found)


def tidy(name: str) -> str:
    """Return a name without what people write differently."""
    return "".join(name.lower().replace("_", " ").split())
