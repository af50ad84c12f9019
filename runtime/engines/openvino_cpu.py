"""OpenVINO on the processor: the fastest engine without a GPU."""

from __future__ import annotations

import io
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from runtime.cache import user_cache_folder
from runtime.engines.base import EngineInfo, Preflight
from runtime.engines.checks import check_image, check_model_file, check_signature, resolve_precision
from runtime.engines.openvino_cache import compiled_network
from runtime.engines.openvino_graph import FORM, simplified
from runtime.engines.openvino_library import refuse_telemetry
from runtime.errors import EngineError
from runtime.precision_plan import PrecisionPlan
from runtime.quantised_graph import check_offered, quantise, quantised_convolutions
from runtime.split_graph import without_concatenations
from runtime.typed_graph import load_graph, plan_beside

_NAME = "openvino"
_LOCATIONS = ("Exception from", "Check '", "FrontEnd API failed")
_PRECISION_HINTS = {"fp32": "f32", "bf16": "bf16"}
_INTEGER_DOT_PRODUCTS = ("avx512vnni", "avxvnni", "amx-int8")


def preflight(*, device: int = 0) -> Preflight:
    """Whether OpenVINO is installed and finds a processor it can use."""
    if find_spec("openvino") is None:
        return Preflight(False, "OpenVINO is not installed; install it with: pip install openvino")
    refuse_telemetry()
    try:
        import openvino
    except ImportError as error:
        return Preflight(
            False, f"OpenVINO is installed but cannot be loaded ({error}); reinstall it: pip install openvino"
        )
    version = str(openvino.__version__).split("-", 1)[0]
    try:
        features = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except RuntimeError as error:
        return Preflight(False, f"OpenVINO {version} has no plugin for this processor ({_first_line(error)})", version)
    if device != 0:
        return Preflight(
            False, f"OpenVINO runs on the CPU here, which is device 0; there is no device {device}", version
        )
    precisions, remark = _precisions(features)
    said = f"OpenVINO {version} runs on the CPU in {' or '.join(precisions)}{remark}"
    return Preflight(True, said, version, "CPU", precisions)


def _precisions(features: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """What this processor is fast and right in, and what to say of it.

    fp32 comes first: bf16 and int8 are about twice as fast but round coarser, so neither is taken unasked, unless the
    bundle was verified in it.
    """
    precisions = ("fp32", "bf16") if "BF16" in features else ("fp32",)
    if not has_integer_dot_products():
        return precisions, ""
    if find_spec("onnx") is None:
        return precisions, " (int8 needs the package onnx: pip install onnx)"
    return (*precisions, "int8"), ""


def has_integer_dot_products() -> bool:
    """Whether the processor sums products of bytes in 32 bits at once (VNNI, AMX).

    Without these instructions the library sums pairs in 16 bits, which overflow. ARM was not tried and counts as no.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    import llvmlite.binding

    here = llvmlite.binding.get_host_cpu_features()
    return any(here.get(name, False) for name in _INTEGER_DOT_PRODUCTS)


def _precision_of_the_rest(found: Preflight) -> str:
    """What an int8 network computes in where it is not quantised (docs/decisions/0021)."""
    return "bf16" if "bf16" in found.precisions else "fp32"


def open_session(
    model: Path, *, precision: str, device: int, threads: int | None, reason: str, cache: Path | None = None
) -> OpenVinoSession:
    """Compile an ONNX file for the processor; any batch size the network allows can be run.

    Args:
        model: the ONNX file.
        precision: ``"fp32"``, ``"bf16"`` or ``"int8"`` where the processor has it, or ``"auto"``: fp32 here. For int8
            the bundle beside the file must hold the ranges that calibration found.
        device: 0.
        threads: None for as many as the library finds best for latency.
        reason: why this engine was chosen; goes into the session's info.
        cache: folder for compiled networks; None for the one in the user's cache.

    Raises:
        EngineError: OpenVINO can't be had, can't read the model, or would compute in another precision.
    """
    check_model_file(model)
    found = preflight(device=device)
    if not found.available:
        raise EngineError(found.reason + ".")
    precision = resolve_precision(precision, found, engine=_NAME)
    import openvino

    # The library would choose bf16 by itself where the processor has it, so the hint is never left out. One stream:
    # windows come one after the other, and all threads work on one. Bound to no cores: every process would bind its
    # threads to the same ones (docs/decisions/0028).
    hint = _PRECISION_HINTS[_precision_of_the_rest(found) if precision == "int8" else precision]
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "ENABLE_CPU_PINNING": False,
    }
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    quantised = _Quantised.of(model) if precision == "int8" else None
    try:
        compiled = compiled_network(
            openvino.Core(),
            model,
            options,
            folder=cache or user_cache_folder(_NAME),
            version=str(openvino.__version__),
            read=lambda path: simplified(_read_onnx(path) if quantised is None else quantised.read(path)),
            variant=f"form {FORM}" + ("" if quantised is None else f" {quantised.variant}"),
        )
        used = compiled.get_property("INFERENCE_PRECISION_HINT")
    except _library_errors() as error:
        raise EngineError(f"OpenVINO cannot load the network {model}: {_first_line(error)}.") from error
    check_signature(model, inputs=len(compiled.inputs), outputs=len(compiled.outputs))
    if used.get_type_name() != hint:
        raise EngineError(f"OpenVINO was told to compute in {hint} but computes in {used.get_type_name()}.")
    if quantised is not None:
        quantised.check(compiled)
    return OpenVinoSession(compiled, EngineInfo(_NAME, found.version, precision, "CPU", reason), model.name)


class OpenVinoSession:
    """A compiled network with the one request that runs it; fulfils ``runtime.engines.base.Session``."""

    def __init__(self, compiled: Any, info: EngineInfo, model: str) -> None:
        self.info = info
        self.output_names: tuple[str, ...] = tuple(output.get_any_name() for output in compiled.outputs)
        self._model = model
        shape = compiled.inputs[0].get_partial_shape()
        self._declared = [axis.get_length() if axis.is_static else None for axis in shape]
        self._compiled, self._request = compiled, compiled.create_infer_request()

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run the network; see ``runtime.engines.base.Session``."""
        if self._request is None:
            raise EngineError(f"The session of {self._model} is closed.")
        check_image(image, self._declared, model=self._model)
        # One by one: the library shares a batch out otherwise than one image, and then sums in another order.
        results = [self._run_one(image[i : i + 1]) for i in range(len(image))]
        return tuple(results[0]) if len(results) == 1 else tuple(map(np.concatenate, zip(*results, strict=True)))

    def _run_one(self, image: np.ndarray) -> list[np.ndarray]:
        try:
            self._request.infer({0: image}, share_inputs=True)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed on {self._model} with {image.shape}: {_first_line(error)}.") from error
        outputs = (self._request.get_output_tensor(i).data for i in range(len(self.output_names)))
        return [np.array(output, dtype=np.float32) for output in outputs]

    def release_memory(self) -> None:
        """Free the tensors between the layers, and the last input and outputs; see ``runtime.engines.base``."""
        if self._request is not None:
            self._request = None
            try:
                self._compiled.release_memory()
            except RuntimeError as error:
                raise EngineError(f"OpenVINO kept the memory of {self._model}: {_first_line(error)}.") from error
            finally:
                self._request = self._compiled.create_infer_request()

    def close(self) -> None:
        """Free the network."""
        self._compiled = self._request = None

    def __enter__(self) -> OpenVinoSession:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _read_onnx(model: Path | io.BytesIO) -> Any:
    """The network in an ONNX file. Left to guess the format, the library tries others, which print what they miss."""
    from openvino.frontend import FrontEndManager

    reader = FrontEndManager().load_by_framework("onnx")
    return reader.convert(reader.load(str(model) if isinstance(model, Path) else model))


@dataclass(frozen=True)
class _Quantised:
    """A network whose convolutions are to read quantised numbers.

    Args:
        name: of its file.
        split: the FP32 model without concatenations before these convolutions.
        plan: for that.
    """

    name: str
    split: Any
    plan: PrecisionPlan

    @classmethod
    def of(cls, model: Path) -> _Quantised:
        """The network in a file, by the plan beside it; raises EngineError where that does not offer INT8."""
        plan = plan_beside(model)
        check_offered(plan, name=model.name)
        return cls(model.name, *without_concatenations(load_graph(model), plan, name=model.name))

    @property
    def variant(self) -> str:
        """Tells it from what else could be made of the file."""
        return json.dumps(dict(self.plan.int8_ranges), sort_keys=True)

    def read(self, _: Path) -> Any:
        """The library's model of it."""
        return _read_onnx(io.BytesIO(quantise(self.split, self.plan, name=self.name).SerializeToString()))

    def check(self, compiled: Any) -> None:
        """Raise EngineError where the library computes one of these convolutions otherwise than on integers."""
        wanted, integers = quantised_convolutions(self.split, self.plan), _integer_convolutions(compiled)
        if integers < wanted:
            raise EngineError(
                f"OpenVINO was told to compute {wanted} convolutions of {self.name} in int8 but computes {integers} "
                "so; use --precision fp32."
            )


def _integer_convolutions(compiled: Any) -> int:
    """How many convolutions the library does on 8-bit integers, by its own account."""
    told = (node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops())
    kinds = [(str(info["layerType"].value), str(info["runtimePrecision"].value)) for info in told]
    return sum(layer == "Convolution" and kind in ("i8", "u8") for layer, kind in kinds)


def _library_errors() -> tuple[type[Exception], ...]:
    """What the library raises: RuntimeError, and from its readers exceptions that share no base class of their own."""
    from openvino import frontend

    names = ("GeneralFailure", "InitializationFailure", "NotImplementedFailure", "OpConversionFailure")
    return RuntimeError, *(getattr(frontend, name) for name in (*names, "OpValidationFailure"))


def _first_line(error: Exception) -> str:
    """The part of a library's message that says what went wrong: OpenVINO puts its own source locations before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(_LOCATIONS)]
    return (telling or lines or [type(error).__name__])[0].rstrip(".")[:300]
