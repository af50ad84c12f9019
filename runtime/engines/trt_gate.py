"""The parity gate of fresh engines: on their GPU where it is there, else by the graph that they are built from."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from runtime.engines.base import EngineInfo, Session
from runtime.engines.trt_build import Gate
from runtime.engines.trt_cache import read_engine, temporary_file
from runtime.engines.trt_key import ENGINE
from runtime.engines.trt_library import load_library


def gate_for(onnx: Path, *, precision: str, library: str, device: int = 0, trusted: Collection[str] = ()) -> Gate:
    """What ``engine_file`` asks before it installs an engine of a bundle's network, or takes one that nobody asked of.

    Args:
        onnx: the FP32 file in its bundle: the reference, run on the processor.
        precision: of the engine.
        library: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        device: GPU number.
        trusted: SHA-256 digests of the engines with code for the host that may be run.
    """

    def gate(candidate: Path) -> None:
        from runtime.engines.parity import short_gate

        if candidate.suffix == ENGINE:
            with _on_gpu(candidate, precision=precision, library=library, device=device, trusted=trusted) as session:
                short_gate(onnx, session, precision=precision)
        else:
            _gate_graph(onnx, candidate, precision=precision)

    return gate


def _gate_graph(onnx: Path, typed: Path, *, precision: str) -> None:
    """The typed graph, rounded at every step as a GPU would."""
    from runtime.engines.parity import rounding_session, short_gate
    from runtime.rounded_graph import rounded_graph

    graph = rounded_graph(typed.read_bytes())
    with temporary_file(typed.name, graph) as rounded, rounding_session(rounded) as session:
        short_gate(onnx, session, precision=precision)


def _on_gpu(engine: Path, *, precision: str, library: str, device: int, trusted: Collection[str]) -> Session:
    from runtime.device.stream import Stream
    from runtime.engines.trt_session import TensorRtSession

    module = load_library(library)
    sidecar, content = read_engine(engine, trusted=trusted)
    info = EngineInfo(library, str(module.__version__), precision, f"GPU {device}", "under test")
    return TensorRtSession(
        module, content, Stream(device), info=info, model=engine.name, device=device, host_code=sidecar.host_code
    )
