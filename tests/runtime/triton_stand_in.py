"""A small server that speaks Triton's gRPC protocol over a model repository, with onnxruntime behind it.

It loads, warms up, refuses and answers as Triton does, as far as this project's client can tell, and nothing more.
``python triton_stand_in.py REPOSITORY [--die-after N]`` prints its port and serves until it is killed.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

VERSION = "2.61.0"
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@dataclass
class Model:
    """A model that is loaded, or the reason why it is not."""

    config: model_config_pb2.ModelConfig
    session: onnxruntime.InferenceSession | None = None
    reason: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, image: np.ndarray, wanted: list[str]) -> list[np.ndarray]:
        with self.lock:
            return self.session.run(wanted, {self.config.input[0].name: image})


def load(folder: Path) -> Model:
    """Load a model as Triton does: by its schema, its file's signature must agree, each warm-up must succeed."""
    config = text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    if config.name != folder.name or config.backend != "onnxruntime":
        return Model(config, reason=f"unexpected name {config.name} or backend {config.backend}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    (version,) = config.version_policy.specific.versions
    session = onnxruntime.InferenceSession(
        folder / str(version) / config.default_model_filename, options, providers=["CPUExecutionProvider"]
    )
    for tensors, nodes in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        by_name = {node.name: node for node in nodes}
        for tensor in tensors:
            node = by_name.get(tensor.name)
            if node is None:
                return Model(config, reason=f"unexpected tensor {tensor.name}, the model has {', '.join(by_name)}")
            batch, *shape = (n if isinstance(n, int) else -1 for n in node.shape)
            fits = [d in (-1, want) for d, want in zip(shape, tensor.dims, strict=True)]
            if batch != -1 or not all(fits) or tensor.data_type != model_config_pb2.TYPE_FP32:
                return Model(config, reason=f"tensor {tensor.name} has shape {list(tensor.dims)}, the model {shape}")
    model = Model(config, session)
    for warmup in config.model_warmup:
        (given,) = warmup.inputs.values()
        assert 1 <= warmup.batch_size <= config.max_batch_size
        model.run(np.zeros((warmup.batch_size, *given.dims), np.float32), [o.name for o in config.output])
    return model


class StandIn(service_pb2_grpc.GRPCInferenceServiceServicer):
    """The service.

    Args:
        repository: the model repository.
        before_infer: called with the number of each inference before it is run; may raise, wait or kill.

    ``batches`` holds the batch size of every inference, ``failing`` the statuses with which the next ones fail.
    """

    def __init__(self, repository: Path, before_infer=lambda number: None) -> None:
        folders = sorted(path for path in repository.iterdir() if path.is_dir())
        self.models = {folder.name: load(folder) for folder in folders}
        self.before_infer = before_infer
        self.batches: list[int] = []
        self.failing: list[tuple[grpc.StatusCode, str]] = []
        self.is_live = True
        self.index_is_open = True
        self.distort = lambda response: None

    def ServerLive(self, request, context):  # noqa: N802  the protocol's name
        return service_pb2.ServerLiveResponse(live=self.is_live)

    def ServerReady(self, request, context):  # noqa: N802  the protocol's name
        return service_pb2.ServerReadyResponse(ready=not any(model.reason for model in self.models.values()))

    def ServerMetadata(self, request, context):  # noqa: N802  the protocol's name
        return service_pb2.ServerMetadataResponse(name="triton", version=VERSION)

    def ModelReady(self, request, context):  # noqa: N802  the protocol's name
        model = self.models.get(request.name)
        return service_pb2.ModelReadyResponse(ready=model is not None and model.session is not None)

    def ModelConfig(self, request, context):  # noqa: N802  the protocol's name
        return service_pb2.ModelConfigResponse(config=self._model(request.name, request.version, context).config)

    def RepositoryIndex(self, request, context):  # noqa: N802  the protocol's name
        if not self.index_is_open:
            context.abort(grpc.StatusCode.UNAVAILABLE, "This protocol is restricted, expecting header 'admin-key'")
        index = service_pb2.RepositoryIndexResponse()
        for name, model in self.models.items():
            index.models.add(name=name, version="1", state="UNAVAILABLE" if model.reason else "READY")
            index.models[-1].reason = model.reason
        return index

    def ModelInfer(self, request, context):  # noqa: N802  the protocol's name
        model = self._model(request.model_name, request.model_version, context)
        (given,) = request.inputs
        shape = tuple(given.shape)
        wanted, expected = model.config.input[0], [-1, *model.config.input[0].dims]
        if given.name != wanted.name or given.datatype != "FP32":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"unexpected inference input '{given.name}'")
        if list(shape[1:]) != expected[1:]:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"unexpected shape for input '{given.name}' for model '{request.model_name}'. "
                f"Expected {expected}, got {list(shape)}",
            )
        if shape[0] > model.config.max_batch_size:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"inference request batch-size must be <= {model.config.max_batch_size} for '{request.model_name}'",
            )
        self.batches.append(shape[0])
        self.before_infer(len(self.batches))
        if self.failing:
            context.abort(*self.failing.pop(0))
        image = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(shape)
        names = [output.name for output in request.outputs]
        response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
        for name, output in zip(names, model.run(image, names), strict=True):
            response.outputs.add(name=name, datatype="FP32", shape=output.shape)
            response.raw_output_contents.append(output.tobytes())
        self.distort(response)
        return response

    def _model(self, name: str, version: str, context) -> Model:
        model = self.models.get(name)
        if model is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")
        if version not in ("", "1") or model.session is None:
            context.abort(grpc.StatusCode.UNAVAILABLE, f"Request for unknown model: '{name}' has no available versions")
        return model


@contextmanager
def serving(stand_in: StandIn, credentials: grpc.ServerCredentials | None = None) -> Iterator[str]:
    """Serve on a free loopback port inside the block; gives ``host:port``."""
    server = grpc.server(futures.ThreadPoolExecutor(4), options=UNLIMITED)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(stand_in, server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait(10)


def main() -> None:
    """Serve until killed, or until the inference after which it is to die."""
    parser = argparse.ArgumentParser()
    parser.add_argument("repository", type=Path)
    parser.add_argument("--die-after", type=int, default=10**9)
    args = parser.parse_args()

    def before_infer(number: int) -> None:
        if number > args.die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    with serving(StandIn(args.repository, before_infer)) as address:
        print(address, flush=True)
        time.sleep(600)


if __name__ == "__main__":
    main()
