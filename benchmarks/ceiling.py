"""The physical ceiling: how fast this machine multiplies and moves numbers, and what the networks ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import nn

from benchmarks.figures import Figure, repeated
from benchmarks.report import Table, number
from export.parity_on_scans import Networks
from export.verify import TorchSession, reference_networks
from runtime.bundle import Bundle
from train.processor import processor_has_bf16

MATRIX = 2048
"""Side of the square matrices whose product is timed."""
MOVED_MIB = 256
_GIGA = 1e9
_MIB = 2**20


@dataclass(frozen=True)
class Cost:
    """What one network asks for on one input.

    Args:
        gflop: floating-point operations of its convolutions and matrix products, in milliards.
        weights_mib: of its parameters in float32.
        least_mib: parameters, input and outputs, each moved once: no implementation moves less.
        layers_mib: parameters, and every layer's input and output, each moved once in float32: what a plain
            implementation moves when nothing stays in the caches.
    """

    gflop: float
    weights_mib: float
    least_mib: float
    layers_mib: float


@dataclass(frozen=True)
class Ceiling:
    """What was measured of the machine: best of all runs, since a ceiling is what can be had.

    Args:
        gflop_per_s: of a large matrix product, by precision.
        read_gb_per_s: of summing a large array.
        copy_gb_per_s: of copying it, counting what is read and written.
    """

    gflop_per_s: Mapping[str, float]
    read_gb_per_s: float
    copy_gb_per_s: float

    def seconds_at_least(self, cost: Cost, precision: str) -> float | None:
        """The time below which an input can't go, by operations or by bytes; None for a precision not measured."""
        rate = self.gflop_per_s.get(precision)
        if not rate:
            return None
        return max(cost.gflop / rate, cost.least_mib * _MIB / _GIGA / self.read_gb_per_s)


def measure_ceiling(*, side: int = MATRIX, moved_mib: int = MOVED_MIB, repeats: int = 9) -> Ceiling:
    """Time matrix products and copies with torch's present number of threads, on the GPU where torch sees one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rates = {name: _product_rate(kind, side, device, repeats) for name, kind in _precisions(device).items()}
    values = torch.ones(moved_mib * _MIB // 4, device=device)
    target = torch.empty_like(values)
    read_s = min(repeated(lambda: _done(values.sum()), repeats))
    copy_s = min(repeated(lambda: _done(target.copy_(values)), repeats))
    gigabytes = values.nbytes / _GIGA
    return Ceiling(rates, gigabytes / read_s, 2 * gigabytes / copy_s)


def _precisions(device: torch.device) -> dict[str, torch.dtype]:
    if device.type == "cuda":
        return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    return {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if processor_has_bf16() else {})


def _product_rate(kind: torch.dtype, side: int, device: torch.device, repeats: int) -> float:
    a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    return 2 * side**3 / min(repeated(lambda: _done(a @ b), repeats)) / _GIGA


def _done(result: torch.Tensor) -> None:
    if result.device.type == "cuda":
        torch.cuda.synchronize(result.device)


def network_costs(bundle: Bundle) -> dict[str, Cost]:
    """What each of a bundle's networks asks for on one window or crop."""
    reference: Networks = reference_networks(bundle)
    spec = bundle.spec
    pairs = {
        "locnet": (reference.locnet, spec.locnet.window_zyx),
        "fracsegnet": (reference.fracsegnet, spec.fracsegnet.crop_zyx),
    }
    if reference.levelnet is not None and spec.levelnet is not None:
        pairs["levelnet"] = (reference.levelnet, spec.levelnet.crop_zyx)
    costs = {}
    for name, (session, shape) in pairs.items():
        costs[name] = cost_of(cast(TorchSession, session).network, (1, 1, *shape))
    return costs


def cost_of(network: nn.Module, shape: tuple[int, ...]) -> Cost:
    """Operations and bytes of a network on one input of a shape."""
    from torch.utils.flop_counter import FlopCounterMode

    moved = 0

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal moved
        moved += _bytes(inputs) + _bytes(output)

    leaves = [module for module in network.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(count) for module in leaves]
    image = torch.zeros(shape)
    try:
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            outputs = network(image)
    finally:
        for hook in hooks:
            hook.remove()
    weights = sum(p.nbytes for p in network.parameters())
    least = weights + image.nbytes + _bytes(outputs)
    return Cost(float(counter.get_total_flops()) / _GIGA, weights / _MIB, least / _MIB, (weights + moved) / _MIB)


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return int(value.nbytes)
    return sum(_bytes(one) for one in value) if isinstance(value, (tuple, list)) else 0


def ceiling_tables(ceiling: Ceiling, costs: Mapping[str, Cost]) -> tuple[Table, ...]:
    """Both as tables, with the least time that each network can take."""
    rates = [(f"matrix product {name}", f"{number(rate)} GFLOP/s") for name, rate in ceiling.gflop_per_s.items()]
    rates += [("memory, read", f"{number(ceiling.read_gb_per_s)} GB/s")]
    rates += [("memory, copy", f"{number(ceiling.copy_gb_per_s)} GB/s")]
    precisions = tuple(ceiling.gflop_per_s)
    rows = []
    for name, cost in costs.items():
        floors = [ceiling.seconds_at_least(cost, precision) for precision in precisions]
        asked = (number(v) for v in (cost.gflop, cost.weights_mib, cost.least_mib, cost.layers_mib))
        rows.append((name, *asked, *(number(None if s is None else 1000 * s) for s in floors)))
    columns = (
        "one input",
        "GFLOP",
        "weights MiB",
        "least MiB",
        "layers MiB",
        *(f"{p}: ms at least" for p in precisions),
    )
    return Table("the machine's ceiling", ("", "best of all runs"), tuple(rates)), Table(
        "the networks", columns, tuple(rows)
    )


def ceiling_json(ceiling: Ceiling, costs: Mapping[str, Cost]) -> dict[str, Any]:
    """Both as plain values."""
    measured = asdict(ceiling)
    measured["gflop_per_s"] = dict(ceiling.gflop_per_s)
    return {**measured, "networks": {name: asdict(cost) for name, cost in costs.items()}}


def share_of_ceiling(name: str, seconds: Figure, cost: Cost, ceiling: Ceiling, precision: str) -> Figure | None:
    """The rate of a network as a share of the matrix product's in its precision; None where that wasn't measured."""
    rate = ceiling.gflop_per_s.get(precision)
    if not rate:
        return None
    shares = tuple(cost.gflop / s / rate for s in seconds.samples)
    return Figure("share of the ceiling", name, "share", shares, more_is_better=True)
