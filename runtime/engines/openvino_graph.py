"""The same network in fewer operations, before OpenVINO compiles it (docs/decisions/0026).

Both changes are algebra: they give the same numbers but for rounding. A network in which nothing fits stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FORM = 2
"""To be raised when something else is made of a network, quantised or not, before it is compiled: what was compiled
before is not used then."""

Float64 = npt.NDArray[np.float64]


def simplified(model: Any) -> Any:
    """The ``openvino.Model``, changed in place: upsampling folded into what reads it, heads parted."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Convolution":
            _fold_upsampling(node)
            _part_head(node)
        elif node.get_type_name() == "ConvolutionBackpropData":
            _part_upsampling_head(node)
    model.validate_nodes_and_infer_types()
    return model


def composed_kernel(up: npt.ArrayLike, after: npt.ArrayLike) -> Float64:
    """One transposed convolution for two: (i, o, 4, 4, 4), stride 2, one voxel of padding on each side.

    A convolution of what was upsampled sees each coarse voxel in eight places or not at all: as one operation it needs
    8 products of the coarse voxels where it took 27 of the fine ones.

    Args:
        up: (i, c, 2, 2, 2) of a transposed convolution of stride 2 without padding.
        after: (o, c, 3, 3, 3) of the convolution that reads its result, padded by one voxel of zeros.
    """
    first, second = np.asarray(up, np.float64), np.asarray(after, np.float64)
    kernel = np.zeros((first.shape[0], second.shape[0], 4, 4, 4))
    for a in np.ndindex(2, 2, 2):
        for b in np.ndindex(3, 3, 3):
            z, y, x = (2 + m - n for m, n in zip(a, b, strict=True))
            kernel[:, :, z, y, x] += np.einsum("ic,oc->io", first[(..., *a)], second[(..., *b)])
    return kernel


def bias_seen_by(after: npt.ArrayLike, bias: npt.ArrayLike, shape_zyx: tuple[int, int, int]) -> Float64:
    """(1, o, z, y, x): what a convolution padded with zeros makes of a bias that is the same in all voxels.

    Args:
        after: (o, c, 3, 3, 3) of the convolution.
        bias: (c,) of what it reads.
        shape_zyx: of that.
    """
    taps = np.einsum("ocdef,c->odef", np.asarray(after, np.float64), np.asarray(bias, np.float64))
    inside = [
        np.array([[0 <= n + d < size for d in (-1, 0, 1)] for n in range(size)], np.float64) for size in shape_zyx
    ]
    return np.asarray(np.einsum("odef,zd,ye,xf->ozyx", taps, *inside, optimize=True)[None])


@dataclass(frozen=True)
class _Upsampling:
    """A transposed convolution that doubles the size, and its bias.

    Args:
        coarse: the output that it reads.
        weight: (i, c, 2, 2, 2).
        bias: (c,).
        shape_zyx: of its result.
    """

    coarse: Any
    weight: np.ndarray
    bias: np.ndarray
    shape_zyx: tuple[int, int, int]

    @classmethod
    def behind(cls, output: Any) -> _Upsampling | None:
        """The one that gives an output, or None."""
        add = output.get_node()
        if add.get_type_name() != "Add" or len(_readers(add)) != 1:
            return None
        node = add.input_value(0).get_node()
        if node.get_type_name() != "ConvolutionBackpropData" or node.get_input_size() != 2:
            return None
        weight, axes = _weight(node), list(output.get_partial_shape())[2:]
        if weight is None or weight.shape[2:] != (2, 2, 2) or not _is_plain(node, stride=2, padding=0):
            return None
        bias = _bias(add, weight.shape[1])
        if bias is None or not all(axis.is_static for axis in axes):
            return None
        z, y, x = (axis.get_length() for axis in axes)
        return cls(node.input_value(0), weight, bias, (z, y, x))


def _fold_upsampling(convolution: Any) -> None:
    """Where a 3x3x3 convolution reads what was upsampled beside a second tensor, let it read the coarse one itself."""
    from openvino import opset13 as ops

    beside = convolution.input_value(0).get_node()
    weight = _weight(convolution)
    if beside.get_type_name() != "Concat" or beside.get_input_size() != 2 or beside.get_attributes()["axis"] != 1:
        return
    if len(_readers(beside)) != 1 or weight is None or weight.shape[2:] != (3, 3, 3):
        return
    if not _is_plain(convolution, stride=1, padding=1):
        return
    found = _Upsampling.behind(beside.input_value(0))
    if found is None:
        return
    channels = found.weight.shape[1]
    of_coarse, of_fine = weight[:, :channels], weight[:, channels:]
    kernel = composed_kernel(found.weight, of_coarse).astype(np.float32)
    ones = [1, 1, 1]
    coarse = ops.convolution_backprop_data(found.coarse, ops.constant(kernel), [2, 2, 2], None, ones, ones, ones)
    fine = ops.convolution(beside.input_value(1), ops.constant(np.ascontiguousarray(of_fine)), ones, ones, ones, ones)
    bias = bias_seen_by(of_coarse, found.bias, found.shape_zyx).astype(np.float32)
    _replace(convolution.output(0), ops.add(ops.add(coarse, fine), ops.constant(bias)))


def _part_head(convolution: Any) -> None:
    """Where a convolution's channels are only cut apart again, let one convolution give each part."""
    from openvino import opset13 as ops

    weight, attributes = _weight(convolution), convolution.get_attributes()
    if weight is None or attributes["auto_pad"] != "explicit":
        return
    bias, parts = _parts_of(convolution, len(weight))
    for one, channels in parts:
        part = ops.convolution(
            convolution.input_value(0),
            ops.constant(np.ascontiguousarray(weight[channels])),
            attributes["strides"],
            attributes["pads_begin"],
            attributes["pads_end"],
            attributes["dilations"],
        )
        column = bias[channels].reshape(1, -1, *[1] * (weight.ndim - 2))
        _replace(one.output(0), ops.add(part, ops.constant(column)))


def _part_upsampling_head(node: Any) -> None:
    """The same for a transposed convolution that doubles the size: each coarse voxel gives eight fine ones of a part.

    As none of them overlap, that is a convolution of one voxel with eight times the channels, laid out in space.
    """
    from openvino import opset13 as ops

    weight = _weight(node)
    if weight is None or weight.shape[2:] != (2, 2, 2) or not _is_plain(node, stride=2, padding=0):
        return
    bias, parts = _parts_of(node, weight.shape[1])
    ones, none = [1, 1, 1], [0, 0, 0]
    for one, channels in parts:
        eight = weight[:, channels].transpose(2, 3, 4, 1, 0).reshape(-1, len(weight), 1, 1, 1)
        kernel, column = ops.constant(np.ascontiguousarray(eight)), np.tile(bias[channels], 8).reshape(1, -1, 1, 1, 1)
        part = ops.add(ops.convolution(node.input_value(0), kernel, ones, none, none, ones), ops.constant(column))
        _replace(one.output(0), ops.depth_to_space(part, "blocks_first", 2))


def _parts_of(convolution: Any, channels: int) -> tuple[np.ndarray, list[tuple[Any, slice]]]:
    """The bias (channels,) behind a convolution, and the nodes that only cut its channels apart, each with which."""
    nothing: tuple[np.ndarray, list[tuple[Any, slice]]] = np.zeros(0, np.float32), []
    readers = _readers(convolution)
    if len(readers) != 1 or readers[0].get_type_name() != "Add":
        return nothing
    bias, slices = _bias(readers[0], channels), _readers(readers[0])
    parts = [(one, found) for one in slices if (found := _channels(one, channels)) is not None]
    return nothing if bias is None or len(slices) < 2 or len(parts) < len(slices) else (bias, parts)


def _readers(node: Any) -> list[Any]:
    """The nodes that read a node's output, without those that only ask for its shape, as a bias from ONNX does."""
    found = [target.get_node() for target in node.output(0).get_target_inputs()]
    return [one for one in found if one.get_type_name() != "ShapeOf"]


def _channels(node: Any, count: int) -> slice | None:
    """The channels that a node cuts out of ``count``, or None where it does anything else."""
    if node.get_type_name() != "Slice" or node.get_input_size() != 5:
        return None
    values = [_constant(node.input_value(i)) for i in range(1, 5)]
    if any(value is None or value.size != 1 for value in values):
        return None
    first, end, step, axis = (int(value.item()) for value in values if value is not None)
    return slice(first, min(end, count)) if axis == 1 and step == 1 and 0 <= first < end else None


def _is_plain(node: Any, *, stride: int, padding: int) -> bool:
    """Whether a convolution moves, pads and spreads alike along all axes, by no rule but these numbers."""
    told = node.get_attributes()
    return (
        told["auto_pad"] == "explicit"
        and set(told["strides"]) == {stride}
        and {*told["pads_begin"], *told["pads_end"]} == {padding}
        and set(told["dilations"]) == {1}
        and not any(told.get("output_padding", ()))
    )


def _weight(convolution: Any) -> np.ndarray | None:
    """A convolution's weights, where they are FP32 numbers that stand in the network."""
    node = convolution.input_value(1).get_node()
    weight: np.ndarray | None = node.get_data() if node.get_type_name() == "Constant" else None
    return weight if weight is not None and weight.dtype == np.float32 else None


def _bias(add: Any, channels: int) -> np.ndarray | None:
    """(channels,): what an addition adds to each channel, in all voxels alike; None where it is anything else."""
    bias, shape = _constant(add.input_value(1)), add.input_value(1).get_partial_shape()
    spread = [1, channels, *[1] * (len(list(add.output(0).get_partial_shape())) - 2)]
    if bias is None or not shape.is_static or list(shape.to_shape()) != spread:
        return None
    return bias.ravel()


def _constant(output: Any) -> np.ndarray | None:
    """The numbers behind an output that is a constant, perhaps of another shape, or None."""
    node = output.get_node()
    while node.get_type_name() == "Reshape":
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant":
        return None
    data: np.ndarray = node.get_data()
    return data


def _replace(old: Any, new_node: Any) -> None:
    """Let all that read one output read a new node's, which takes over its names."""
    names = old.get_names()
    old.replace(new_node.output(0))
    new_node.output(0).set_names(names)
