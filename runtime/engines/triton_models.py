"""What a bundle's networks are called on a Triton server and what they take and give: writer and client agree here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from runtime.bundle import Bundle, FracSegNetSpec, LevelNetSpec, LocNetSpec

PREFIX = "vertscan"
INPUT = "image"
VERSION = "1"
"""Of every served model. Its name holds the network's digest, so another network is another model, not a version."""
NETWORK_SHA256 = "vertscan_network_sha256"
BUNDLE_SHA256 = "vertscan_bundle_sha256"
BUNDLE_NAME = "vertscan_bundle"
PRECISION = "vertscan_precision"
"""Keys of the parameters in a served model's configuration, all of them text."""

_DIGITS = 12
_OFFSET_AXES = 3
_HEIGHTS = 6


@dataclass(frozen=True)
class ServedNetwork:
    """A network of a bundle as a server offers it; inputs and outputs are float32 at every precision.

    Args:
        file: its ONNX file's name in the bundle.
        sha256: of that file, hex, also where the server runs something made from it.
        image_shape: (1, z, y, x) of one input ``image``, without the batch.
        outputs: name to shape of one output, without the batch, in the network's own order.
    """

    file: str
    sha256: str
    image_shape: tuple[int, ...]
    outputs: Mapping[str, tuple[int, ...]]

    def model_name(self, precision: str) -> str:
        """The model's name on the server: ``vertscan_<network>_<start of its SHA-256>_<precision>``."""
        return f"{self.family}{self.sha256[:_DIGITS]}_{precision}"

    @property
    def family(self) -> str:
        """How the names of all versions of this network begin, whatever bundle they come from."""
        return f"{PREFIX}_{self.file.removesuffix('.onnx')}_"


def served_networks(bundle: Bundle) -> tuple[ServedNetwork, ...]:
    """The bundle's networks as a server offers them, in the order of ``BundleSpec.networks``."""
    return tuple(_served(spec, bundle.spec.files[spec.file]) for spec in bundle.spec.networks)


def _served(spec: LocNetSpec | FracSegNetSpec | LevelNetSpec, sha256: str) -> ServedNetwork:
    outputs: dict[str, tuple[int, ...]] = {}
    if isinstance(spec, LocNetSpec):
        size = spec.window_zyx
        outputs["heatmap"] = (1, *size)
        if spec.variant == "F":
            outputs["offsets"] = (_OFFSET_AXES, *size)
    elif isinstance(spec, FracSegNetSpec):
        size = spec.crop_zyx
        outputs["mask"] = (len(spec.mask_channels), *size)
        outputs["grade"] = (len(spec.grade_names),)
        if spec.has_heights:
            outputs["heights"] = (_HEIGHTS,)
    else:
        size = spec.crop_zyx
        outputs["level"] = (len(spec.level_names),)
    return ServedNetwork(spec.file, sha256, (1, *size), MappingProxyType(outputs))


def config_faults(config: Any, network: ServedNetwork, precision: str) -> Iterator[str]:
    """What in a server's configuration of a model is not as this network has it.

    Args:
        config: Triton's ``ModelConfig``.
        network: that it should be of.
        precision: that it should be in.
    """

    def told(key: str) -> str:
        return str(config.parameters[key].string_value) if key in config.parameters else "nothing"

    if told(NETWORK_SHA256) != network.sha256:
        yield f"its SHA-256 is {network.sha256[:16]}..., the server tells {told(NETWORK_SHA256)[:16]}..."
    if told(PRECISION) != precision:
        yield f"its precision should be {precision}, the server tells {told(PRECISION)}"
    if config.max_batch_size < 1:
        yield f"its max_batch_size should be at least 1, the server tells {config.max_batch_size}"
    tensors: tuple[tuple[str, Mapping[str, tuple[int, ...]], Any], ...] = (
        ("input", {INPUT: network.image_shape}, config.input),
        ("output", network.outputs, config.output),
    )
    for what, expected, met in tensors:
        wanted = {name: f"FP32 {tuple(shape)}" for name, shape in expected.items()}
        found = {tensor.name: f"{_type_name(tensor)} {tuple(tensor.dims)}" for tensor in met}
        if found != wanted:
            yield f"its {what} should be {_listed(wanted)}, the server tells {_listed(found)}"


def kinds(config: Any) -> str:
    """What a model runs on there: ``"GPU"``, ``"CPU"``, or whatever else its instances are."""
    from tritonclient.grpc import model_config_pb2

    names = {model_config_pb2.ModelInstanceGroup.Kind.Name(group.kind) for group in config.instance_group}
    return " and ".join(sorted(name.removeprefix("KIND_") for name in names)) or "AUTO"


def _type_name(tensor: Any) -> str:
    from tritonclient.grpc import model_config_pb2

    return str(model_config_pb2.DataType.Name(tensor.data_type)).removeprefix("TYPE_")


def _listed(tensors: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {tensors[name]}" for name in sorted(tensors)) or "none"
