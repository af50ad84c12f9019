"""Who runs in the latency case: torch in its variants, and every engine and precision of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from export.parity_on_scans import Networks, opened
from export.verify import candidates, reference_networks
from runtime.bundle import Bundle
from runtime.engines import ENGINES, ONLY_BY_NAME, EngineChoice, engine_module
from runtime.engines.base import EngineInfo
from runtime.errors import EngineError

TORCH_EAGER, TORCH_AMP, TORCH_COMPILE = "torch eager", "torch AMP channels-last", "torch.compile AMP channels-last"


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


class TorchVariant:
    """A torch network as it would be deployed with torch; fulfils ``runtime.engines.base.Session``.

    Args:
        network: FP32, in evaluation mode, on the device.
        info: what it is.
        outputs: their names.
        device: ``torch.device``.
        half: whether autocast lets convolutions run in FP16, on channels-last memory.
    """

    def __init__(
        self, network: nn.Module | Callable[..., Any], info: EngineInfo, outputs: tuple[str, ...],
        *, device: torch.device, half: bool,
    ) -> None:  # fmt: skip
        self.info, self.output_names = info, outputs
        self._network, self._device, self._half = network, device, half

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run the network; see Session."""
        outputs = self.run_on_device(self.on_device(image))
        return tuple(output.float().cpu().numpy() for output in outputs)

    def on_device(self, image: np.ndarray) -> torch.Tensor:
        """The batch where the network is."""
        tensor = torch.from_numpy(image).to(self._device)
        return tensor.to(memory_format=torch.channels_last_3d) if self._half else tensor

    def run_on_device(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The network alone, without copies; on a GPU it may still be running when this returns."""
        with torch.inference_mode(), torch.autocast(self._device.type, torch.float16, enabled=self._half):
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
    bundle: Bundle, *, engines: Sequence[str] = (), device: int = 0, threads: int | None = None, compiled: bool = True
) -> tuple[list[Contender], list[tuple[str, str]]]:
    """Those that can run here, torch eager first; and those that can't, with why.

    Args:
        bundle: whose networks are run.
        engines: names of the engine table, or none for all.
        device: GPU number; without a GPU, torch runs on the processor.
        threads: on the processor; None for all.
        compiled: whether torch.compile takes part where it can.

    Raises:
        EngineError: an engine that was named is not in the table.
    """
    there, missing = _torch_variants(bundle, device=device, compiled=compiled)
    for name in engines or [name for name in ENGINES if name not in ONLY_BY_NAME]:
        found = engine_module(name).preflight(device=device)
        if not found.available:
            missing.append((name, found.reason))
            continue
        for choice in candidates(bundle.spec, name, None, device=device):
            there.append(Contender(name, choice.precision, _opener(bundle, choice, threads)))
    return there, missing


def _opener(
    bundle: Bundle, choice: EngineChoice, threads: int | None
) -> Callable[[], AbstractContextManager[Networks]]:
    return lambda: opened(bundle, choice, threads=threads)


def _torch_variants(bundle: Bundle, *, device: int, compiled: bool) -> tuple[list[Contender], list[tuple[str, str]]]:
    on_gpu = torch.cuda.is_available() and device < torch.cuda.device_count()
    where = torch.device("cuda", device) if on_gpu else torch.device("cpu")
    variants = [Contender(TORCH_EAGER, "fp32", lambda: torch_networks(bundle, TORCH_EAGER, where))]
    if not on_gpu:
        why = "FP16 of torch is for GPUs, and this torch finds none"
        return variants, [(TORCH_AMP, why), (TORCH_COMPILE, why)]
    variants.append(Contender(TORCH_AMP, "fp16", lambda: torch_networks(bundle, TORCH_AMP, where)))
    if not compiled:
        return variants, [(TORCH_COMPILE, "left out by --no-compile")]
    variants.append(Contender(TORCH_COMPILE, "fp16", lambda: torch_networks(bundle, TORCH_COMPILE, where)))
    return variants, []


@contextmanager
def torch_networks(bundle: Bundle, variant: str, device: torch.device) -> Iterator[Networks]:
    """The bundle's networks in torch; FP32 is true FP32, so TF32 is off meanwhile."""
    kept = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = False, True
    reference = reference_networks(bundle)
    half = variant != TORCH_EAGER
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    info = EngineInfo(variant, torch.__version__, "fp16" if half else "fp32", name, "a contender")

    def session(of: Any) -> TorchVariant:
        network = of.network.to(device)
        network = network.to(memory_format=torch.channels_last_3d) if half else network
        run = torch.compile(network, dynamic=False) if variant == TORCH_COMPILE else network
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
