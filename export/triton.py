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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.bundle import Bundle, open_bundle, sha256_of
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
from runtime.errors import InputError, VertscanError
from runtime.extras import stop_without

try:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2
except ModuleNotFoundError as error:
    stop_without("triton", error)

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
        plans: for TensorRT, each network's plan, by its file's name in the bundle without ``.onnx``.

    Raises:
        InputError: values that don't go together.
    """

    precision: str = "fp32"
    backend: str = "onnxruntime"
    max_batch: int = _DEFAULT_BATCH
    queue_delay_us: int = _DEFAULT_DELAY_US
    instances: int = 1
    kind: str = "auto"
    plans: Mapping[str, Path] = field(default_factory=dict)

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
        InputError: the folder holds something else or can't be written, or a plan is missing.
        EngineError: the typed graph can't be made.
    """
    folder = folder.absolute()
    _check_replaceable(folder)
    networks = served_networks(bundle)
    _check_plans(networks, serving)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            fresh = Path(scratch) / "new"
            fresh.mkdir()
            for network in networks:
                _write_model(network, bundle, serving, fresh)
            (fresh / MARKER).write_text(_marker(bundle, networks, serving), encoding="utf-8", newline="\n")
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


def _write_model(network: ServedNetwork, bundle: Bundle, serving: Serving, repository: Path) -> None:
    home = repository / network.model_name(serving.precision)
    (home / VERSION).mkdir(parents=True)
    config = text_format.MessageToString(model_config(network, bundle, serving))
    (home / "config.pbtxt").write_text(config, encoding="utf-8", newline="\n")
    target = home / VERSION / BACKENDS[serving.backend]
    if serving.backend == "tensorrt":
        shutil.copyfile(serving.plans[_short_name(network)], target)
    elif serving.precision == "fp32":
        shutil.copyfile(bundle.path_of(network.file), target)
    else:
        from runtime.typed_graph import typed_graph

        target.write_bytes(typed_graph(bundle.path_of(network.file), serving.precision))


def _marker(bundle: Bundle, networks: Sequence[ServedNetwork], serving: Serving) -> str:
    plans = {name: sha256_of(path) for name, path in serving.plans.items()}
    told = {
        "bundle": {"name": bundle.spec.name, "version": bundle.spec.version, "sha256": bundle.sha256},
        "precision": serving.precision,
        "backend": serving.backend,
        "models": {network.model_name(serving.precision): network.sha256 for network in networks},
        **({"plans_sha256": plans} if plans else {}),
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


def _check_plans(networks: Sequence[ServedNetwork], serving: Serving) -> None:
    if serving.backend != "tensorrt":
        return
    names = {_short_name(network) for network in networks}
    if set(serving.plans) != names:
        raise InputError(
            f"TensorRT needs a plan for each of {', '.join(sorted(names))}; "
            f"met {', '.join(sorted(serving.plans)) or 'none'}. Give --plan NETWORK=FILE for each."
        )
    for name, path in serving.plans.items():
        if not path.is_file():
            raise InputError(f"There is no plan of {name} at {path}.")


def _short_name(network: ServedNetwork) -> str:
    return network.file.removesuffix(".onnx")


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
        type=_plan,
        metavar="NETWORK=FILE",
        help="a network's TensorRT plan, built on the server's kind of GPU with the server's TensorRT; once for each",
    )
    parser.add_argument("--max-batch", type=int, default=_DEFAULT_BATCH, metavar="N", help="images run at once")
    parser.add_argument(
        "--queue-delay-us", type=int, default=_DEFAULT_DELAY_US, metavar="US", help="wait for others to share a batch"
    )
    parser.add_argument("--instances", type=int, default=1, metavar="N", help="of each network, per GPU")
    parser.add_argument("--kind", choices=tuple(KINDS), default="auto", help="what the server runs them on")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="new, or written by this before")
    return parser


def _plan(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} should be NETWORK=FILE, such as locnet=locnet.plan")
    return name, Path(path)


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
            plans=dict(args.plan),
        )
        models = write_repository(open_bundle(args.bundle), args.out, serving)
    except VertscanError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    print("\n".join(models))
    print(f"Serve it with: tritonserver --model-repository={args.out.absolute()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
