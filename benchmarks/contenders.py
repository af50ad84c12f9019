"""Who runs: torch in its variants, and every engine and precision of this machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.peers import Missing
from export.parity_on_scans import Networks, opened
from export.verify import candidates, reference_networks
from runtime.bundle import Bundle
from runtime.engines import ENGINES, ONLY_BY_NAME, EngineChoice, engine_module, select_engine
from runtime.engines.base import EngineInfo
from runtime.errors import EngineError
from train.processor import processor_has_bf16

TORCH_EAGER, TORCH_COMPILED = "torch eager", "torch.compile"


@dataclass(frozen=True)
class Half:
    """Half precision of torch on one kind of device.

    Args:
        name: of the variant.
        compiled_name: of the variant with torch.compile.
        precision: as engines name it.
        dtype: what autocast lets convolutions compute in.
        weights: what the network's weights are kept in: FP32 ones are cast anew in each run.
    """

    name: str
    compiled_name: str
    precision: str
    dtype: torch.dtype
    weights: torch.dtype


HALF = {
    "cuda": Half("torch AMP channels-last", "torch.compile AMP channels-last", "fp16", torch.float16, torch.float32),
    "cpu": Half("torch channels-last", "torch.compile channels-last", "bf16", torch.bfloat16, torch.bfloat16),
}
"""The usual on a GPU; on a processor BF16, for which there are instructions, with BF16 weights: faster there."""


@dataclass(frozen=True)
class Contender:
    """One way to run a bundle's networks.

    Args:
        name: an engine's, or ``TORCH_EAGER`` and so on.
        precision: what it computes in.
        opened: gives the networks, and frees them.
    """

    name: str
    precision: str
    opened: Callable[[], AbstractContextManager[Networks]]

    @property
    def title(self) -> str:
        """Name and precision."""
        return f"{self.name} {self.precision}"


class TorchVariant:
    """A torch network as it would be deployed with torch; fulfils ``runtime.engines.base.Session``.

    Args:
        network: FP32, in evaluation mode, on the device.
        info: what it is.
        outputs: their names.
        device: ``torch.device``.
        half: None for FP32, else what convolutions run in, on channels-last memory; the network is as it says.
    """

    def __init__(
        self, network: nn.Module | Callable[..., Any], info: EngineInfo, outputs: tuple[str, ...],
        *, device: torch.device, half: Half | None,
    ) -> None:  # fmt: skip
        self.info, self.output_names = info, outputs
        self._network, self._device, self._half = network, device, half

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run the network; see Session."""
        outputs = self.run_on_device(self.on_device(image))
        return tuple(output.float().cpu().numpy() for output in outputs)

    def on_device(self, image: np.ndarray) -> torch.Tensor:
        """The batch where the network is."""
        return self.as_needed(torch.from_numpy(image))

    def as_needed(self, image: torch.Tensor) -> torch.Tensor:
        """A tensor on the network's device, in its order of memory."""
        tensor = image.to(self._device)
        if self._half is None:
            return tensor
        return tensor.to(memory_format=torch.channels_last_3d)

    def run_on_device(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The network alone, without copies; on a GPU it may still be running when this returns."""
        kind = None if self._half is None else self._half.dtype
        with torch.inference_mode(), torch.autocast(self._device.type, kind, enabled=kind is not None):
            outputs: tuple[torch.Tensor, ...] = tuple(self._network(image))
        return outputs

    def close(self) -> None:
        """Free the network."""
        self._network = _closed

    def __enter__(self) -> TorchVariant:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _closed(image: torch.Tensor) -> tuple[torch.Tensor, ...]:
    raise EngineError("The session is closed.")


def contenders(
    bundle: Bundle, *, engines: Sequence[str] = (), precisions: Sequence[str] = (), device: int = 0,
    threads: int | None = None, compiled: bool = True,
) -> tuple[list[Contender], list[Missing]]:  # fmt: skip
    """Those that can run here, torch eager first; and those that can't, with why.

    Args:
        bundle: whose networks are run.
        engines: names of the engine table, or none for all.
        precisions: of the engines, or none for all; torch runs in its own.
        device: GPU number; without a GPU, torch runs on the processor.
        threads: on the processor; None for all.
        compiled: whether torch.compile takes part where it can.

    Raises:
        EngineError: an engine that was named is not in the table.
    """
    there, missing = _torch_variants(bundle, device=device, compiled=compiled)
    names = engines or [name for name in ENGINES if name not in ONLY_BY_NAME]
    ours, absent = our_contenders(bundle, engines=names, device=device, threads=threads, verify_only=True)
    return [*there, *(one for one in ours if not precisions or one.precision in precisions)], [*missing, *absent]


def our_contenders(
    bundle: Bundle, *, engines: Sequence[str] = (), device: int = 0, threads: int | None = None,
    verify_only: bool = False,
) -> tuple[list[Contender], list[Missing]]:  # fmt: skip
    """The runtime's engines in each of their precisions, the one that ``auto`` takes where none is named.

    Args:
        bundle: whose networks are run.
        engines: names of the engine table.
        device: GPU number.
        threads: on the processor; None for all.
        verify_only: also what is right but too slow to be offered.

    Raises:
        EngineError: an engine that was named is not in the table, or none was and none can run here.
    """
    there: list[Contender] = []
    missing: list[Missing] = []
    for name in engines or [select_engine(device=device).name]:
        found = engine_module(name).preflight(device=device)
        if not found.available:
            missing.append(Missing(name, found.reason))
            continue
        for choice in candidates(bundle.spec, name, None, device=device):
            if verify_only or choice.precision in found.precisions:
                there.append(Contender(name, choice.precision, _opener(bundle, choice, threads)))
    return there, missing


def _opener(
    bundle: Bundle, choice: EngineChoice, threads: int | None
) -> Callable[[], AbstractContextManager[Networks]]:
    return lambda: opened(bundle, choice, threads=threads)


def _torch_variants(bundle: Bundle, *, device: int, compiled: bool) -> tuple[list[Contender], list[Missing]]:
    """Torch in FP32 and in half precision, each eager and compiled; the reference, eager in FP32, first."""
    where = torch_device(device)
    half, why_not = HALF[where.type], why_no_half(where)
    why_not_compiled = _why_not_compiled(where) if compiled else "left out by --no-compile"
    there, missing = [torch_contender(bundle, where, half=False)], []
    for name, is_half, is_compiled, why in (
        (half.name, True, False, why_not),
        (half.compiled_name, True, True, why_not or why_not_compiled),
        (TORCH_COMPILED, False, True, why_not_compiled),
    ):
        if why:
            missing.append(Missing(name, why))
        else:
            there.append(torch_contender(bundle, where, half=is_half, compiled=is_compiled))
    return there, missing


def _why_not_compiled(where: torch.device) -> str:
    needs_compiler = where.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "cl"))
    return "there is no C++ compiler" if needs_compiler else ""


def why_no_half(where: torch.device) -> str:
    """Why torch's half precision is no peer on a device, or ``""``: emulated, it is slower than FP32."""
    has_it = where.type != "cpu" or processor_has_bf16()
    return "" if has_it else "this processor does not multiply in BF16: torch only emulates it, slower than FP32"


def torch_contender(bundle: Bundle, device: torch.device, *, half: bool, compiled: bool = False) -> Contender:
    """Torch in FP32, or in the half precision of the device."""
    kind = HALF[device.type] if half else None
    name, precision = _variant(kind, compiled=compiled)
    return Contender(name, precision, lambda: torch_networks(bundle, device, kind, compiled=compiled))


def _variant(half: Half | None, *, compiled: bool) -> tuple[str, str]:
    """Name and precision."""
    if half is None:
        return TORCH_COMPILED if compiled else TORCH_EAGER, "fp32"
    return half.compiled_name if compiled else half.name, half.precision


def torch_device(number: int) -> torch.device:
    """The GPU of that number where torch finds it, else the processor."""
    on_gpu = torch.cuda.is_available() and number < torch.cuda.device_count()
    return torch.device("cuda", number) if on_gpu else torch.device("cpu")


@contextmanager
def torch_networks(
    bundle: Bundle, device: torch.device, half: Half | None, *, compiled: bool = False
) -> Iterator[Networks]:
    """The bundle's networks in torch; FP32 is true FP32, so TF32 is off meanwhile."""
    kept = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = False, True
    reference = reference_networks(bundle)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    name, precision = _variant(half, compiled=compiled)
    info = EngineInfo(name, torch.__version__, precision, where, "a contender")

    def session(of: Any) -> TorchVariant:
        network = of.network.to(device)
        if half is not None:
            network = network.to(dtype=half.weights, memory_format=torch.channels_last_3d)
        run = torch.compile(network, dynamic=False) if compiled else network
        return TorchVariant(run, info, of.output_names, device=device, half=half)

    try:
        yield Networks(
            session(reference.locnet),
            session(reference.fracsegnet),
            None if reference.levelnet is None else session(reference.levelnet),
        )
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = kept
        if device.type == "cuda":
            torch.cuda.empty_cache()
