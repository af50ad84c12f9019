"""``python -m export.triton``: a bundle as a model repository that a Triton Inference Server can load.

Each network becomes a model of its own, whose name holds the start of its file's SHA-256 and its precision, so several
bundles can be served side by side. See docs/triton.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime.bundle import Bundle, open_bundle
from runtime.console import INTERRUPTED, complain
from runtime.engines.triton_models import (
    BUNDLE_NAME,
    BUNDLE_SHA256,
    INPUT,
    NETWORK_SHA256,
    PRECISION,
    PREFIX,
    VERSION,
    ServedNetwork,
    served_networks,
)
from runtime.engines.trt_cache import check_engine, read_sidecar
from runtime.engines.trt_key import Sidecar
from runtime.errors import InputError, VertscanError
from runtime.extras import stop_interrupted, stop_without

try:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2
except ModuleNotFoundError as error:
    stop_without("triton", error)
except KeyboardInterrupt:
    stop_interrupted()

BACKENDS = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}
"""Backends, and what they call the file with the network."""
KINDS = {"auto": "KIND_AUTO", "gpu": "KIND_GPU", "cpu": "KIND_CPU"}
MARKER = "vertscan.json"
"""Beside the models, says what the repository was written from; servers read folders only."""
_DEFAULT_BATCH = 8
_DEFAULT_DELAY_US = 1000


@dataclass(frozen=True)
class Serving:
    """How a server is to run the networks.

    Args:
        precision: ``"fp32"``, or ``"fp16"``: strongly typed, see ``runtime.typed_graph``.
        backend: ``"onnxruntime"`` or ``"tensorrt"``.
        max_batch: images that are run at once, at most; a TensorRT plan must have been built for as many.
        queue_delay_us: how long a request waits for others to share its batch, microseconds.
        instances: of each network, on each GPU or on the processor.
        kind: ``"auto"`` (GPUs where there are any), ``"gpu"`` or ``"cpu"``.
        plans: for TensorRT, the networks' engines as ``python -m export.engine build`` writes them, in any order.

    Raises:
        InputError: values that don't go together.
    """

    precision: str = "fp32"
    backend: str = "onnxruntime"
    max_batch: int = _DEFAULT_BATCH
    queue_delay_us: int = _DEFAULT_DELAY_US
    instances: int = 1
    kind: str = "auto"
    plans: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if min(self.max_batch, self.instances) < 1 or self.queue_delay_us < 0:
            raise InputError("Batch and instances are at least 1, the queue's delay is not negative.")
        if self.backend == "tensorrt" and self.kind == "cpu":
            raise InputError("TensorRT runs on GPUs only; use --backend onnxruntime for a server without one.")
        if self.plans and self.backend != "tensorrt":
            raise InputError("Plans are TensorRT's; give --backend tensorrt with them.")


def model_config(network: ServedNetwork, bundle: Bundle, serving: Serving) -> Any:
    """Triton's ``ModelConfig`` of one network: batching, instances, warm-up and what tells clients whose network it is.

    Every batch size that is preferred is warmed up, since libraries choose their kernels at the first batch of a size.
    """
    config = model_config_pb2.ModelConfig(
        name=network.model_name(serving.precision),
        backend=serving.backend,
        default_model_filename=BACKENDS[serving.backend],
        max_batch_size=serving.max_batch,
    )
    if serving.backend == "tensorrt":
        config.platform = "tensorrt_plan"
    config.input.add(name=INPUT, data_type="TYPE_FP32", dims=network.image_shape)
    for name, shape in network.outputs.items():
        config.output.add(name=name, data_type="TYPE_FP32", dims=shape)
    config.version_policy.specific.versions.append(int(VERSION))
    sizes = preferred_batches(serving.max_batch)
    config.dynamic_batching.preferred_batch_size.extend(sizes)
    config.dynamic_batching.max_queue_delay_microseconds = serving.queue_delay_us
    config.instance_group.add(count=serving.instances, kind=KINDS[serving.kind])
    for size in sorted({1, *sizes}):
        warmup = config.model_warmup.add(name=f"batch of {size}", batch_size=size)
        given = warmup.inputs[INPUT]
        given.data_type, given.zero_data = model_config_pb2.TYPE_FP32, True
        given.dims.extend(network.image_shape)
    if serving.backend == "onnxruntime" and serving.kind != "cpu":
        # TF32 rounds like FP16: with it on, calling the result FP32 would not be true.
        cuda = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="cuda")
        cuda.parameters["use_tf32"] = "0"
    told = {
        NETWORK_SHA256: network.sha256,
        BUNDLE_SHA256: bundle.sha256,
        BUNDLE_NAME: f"{bundle.spec.name} {bundle.spec.version}",
        PRECISION: serving.precision,
    }
    for key, value in told.items():
        config.parameters[key].string_value = value
    return config


def preferred_batches(most: int) -> list[int]:
    """The batch sizes that a server should try for: half of the most that it may run at once, and the most."""
    return sorted({max(1, most // 2), most})


def write_repository(bundle: Bundle, folder: Path, serving: Serving) -> tuple[str, ...]:
    """Write the model repository: whole, or not at all.

    Args:
        bundle: whose networks are to be served.
        folder: new, empty, or what this function wrote before, which is then replaced.
        serving: how.

    Returns:
        The models' names.

    Raises:
        InputError: the folder holds something else or can't be written, or a plan is missing or of another network.
        EngineError: the typed graph can't be made, or a plan is damaged.
    """
    folder = folder.absolute()
    _check_replaceable(folder)
    networks = served_networks(bundle)
    plans = _plans(networks, serving, bundle)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            fresh = Path(scratch) / "new"
            fresh.mkdir()
            for network in networks:
                _write_model(network, bundle, serving, plans, fresh)
            (fresh / MARKER).write_text(_marker(bundle, networks, serving, plans), encoding="utf-8", newline="\n")
            _exchange(fresh, folder, Path(scratch) / "old")
    except OSError as error:
        raise InputError(
            f"The model repository {folder} can't be written ({error.strerror or error}); "
            "choose a folder with -o that is writable and has room."
        ) from error
    return tuple(network.model_name(serving.precision) for network in networks)


def _exchange(fresh: Path, folder: Path, old: Path) -> None:
    """Put ``fresh`` at ``folder`` and what was there at ``old``; when that fails, put it back."""
    if folder.exists():
        folder.rename(old)
    try:
        fresh.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise


def _write_model(
    network: ServedNetwork, bundle: Bundle, serving: Serving, plans: Mapping[str, Path], repository: Path
) -> None:
    home = repository / network.model_name(serving.precision)
    (home / VERSION).mkdir(parents=True)
    config = text_format.MessageToString(model_config(network, bundle, serving))
    (home / "config.pbtxt").write_text(config, encoding="utf-8", newline="\n")
    target = home / VERSION / BACKENDS[serving.backend]
    if serving.backend == "tensorrt":
        shutil.copyfile(plans[network.file], target)
    elif serving.precision == "fp32":
        shutil.copyfile(bundle.path_of(network.file), target)
    else:
        from runtime.typed_graph import typed_graph

        target.write_bytes(typed_graph(bundle.path_of(network.file), serving.precision))


def _marker(bundle: Bundle, networks: Sequence[ServedNetwork], serving: Serving, plans: Mapping[str, Path]) -> str:
    told = {
        "bundle": {"name": bundle.spec.name, "version": bundle.spec.version, "sha256": bundle.sha256},
        "precision": serving.precision,
        "backend": serving.backend,
        "models": {network.model_name(serving.precision): network.sha256 for network in networks},
        "plans": {file: asdict(read_sidecar(path)) for file, path in plans.items()},
    }
    return json.dumps(told, indent=2) + "\n"


def _check_replaceable(folder: Path) -> None:
    try:
        names = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise InputError(f"{folder} can't be used ({error.strerror or error}); name another one with -o.") from error
    others = [name for name in names if name != MARKER and not (MARKER in names and name.startswith(f"{PREFIX}_"))]
    if others:
        raise InputError(
            f"{folder} holds other files ({', '.join(others[:3])}); name an empty or new folder with -o. "
            "A server can load several repositories: give it --model-repository more than once."
        )


def _plans(networks: Sequence[ServedNetwork], serving: Serving, bundle: Bundle) -> dict[str, Path]:
    """Each network's plan by its file's name, found by what the plans' own records say they were built from."""
    if serving.backend != "tensorrt":
        return {}
    files = {network.sha256: network.file for network in networks}
    found: dict[str, Path] = {}
    for path in serving.plans:
        sidecar = check_engine(path, trusted=tuple(bundle.spec.trusted_engines.values()))
        faults = list(_plan_faults(sidecar, files, serving))
        if faults:
            raise InputError(f"The plan {path} can't be served: {'; '.join(faults)}.")
        found[files[sidecar.key.onnx_sha256]] = path
    missing = sorted(set(files.values()) - set(found))
    if missing:
        raise InputError(
            f"TensorRT needs a plan for {', '.join(missing)}; build it on the server's kind of GPU with the server's "
            "TensorRT (python -m export.engine build --engine tensorrt) and name it with --plan."
        )
    return found


def _plan_faults(sidecar: Sidecar, files: Mapping[str, str], serving: Serving) -> Iterator[str]:
    key = sidecar.key
    if key.onnx_sha256 not in files:
        yield f"it was built from another {key.network} than this bundle's"
    if key.library != "tensorrt":
        yield f"it is one of {key.library}, which Triton does not run"
    if key.precision != serving.precision:
        yield f"it computes in {key.precision}, not in {serving.precision}"
    if key.max_batch < serving.max_batch:
        yield f"it takes batches up to {key.max_batch}, not {serving.max_batch}; see --max-batch"
    if not sidecar.gates:
        yield "its parity gate was not asked; build it again without --no-gate, which asks it"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m export.triton", description="Writes a bundle as a Triton model repository."
    )
    parser.add_argument("--bundle", type=Path, metavar="PATH", help="folder or zip (default: the one that ships)")
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp32")
    parser.add_argument("--backend", choices=tuple(BACKENDS), default="onnxruntime")
    parser.add_argument(
        "--plan",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="an engine by python -m export.engine, built on the server's kind of GPU with its TensorRT; once for each",
    )
    parser.add_argument("--max-batch", type=int, default=_DEFAULT_BATCH, metavar="N", help="images run at once")
    parser.add_argument(
        "--queue-delay-us", type=int, default=_DEFAULT_DELAY_US, metavar="US", help="wait for others to share a batch"
    )
    parser.add_argument("--instances", type=int, default=1, metavar="N", help="of each network, per GPU")
    parser.add_argument("--kind", choices=tuple(KINDS), default="auto", help="what the server runs them on")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="new, or written by this before")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the repository and return the exit status."""
    args = build_parser().parse_args(argv)
    try:
        serving = Serving(
            precision=args.precision,
            backend=args.backend,
            max_batch=args.max_batch,
            queue_delay_us=args.queue_delay_us,
            instances=args.instances,
            kind=args.kind,
            plans=tuple(args.plan),
        )
        models = write_repository(open_bundle(args.bundle), args.out, serving)
    except VertscanError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    print("\n".join(models))
    print(f"Serve it with: tritonserver --model-repository={args.out.absolute()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
