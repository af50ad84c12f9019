"""A Triton Inference Server elsewhere, asked over gRPC: one GPU server for many workstations.

Used only when it is named together with the server's address: it is never the choice of ``auto``, since the scan's
voxels leave the workstation.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle import Bundle, sha256_of
from runtime.bundle_checks import BUNDLE_JSON
from runtime.engines import EngineChoice
from runtime.engines.base import EngineInfo, Preflight, Session
from runtime.engines.checks import check_image, check_model_file, resolve_precision
from runtime.engines.triton_models import INPUT, VERSION, ServedNetwork, config_faults, kinds, served_networks
from runtime.engines.triton_server import UNAVAILABLE, TritonServer, asked, connect, connection
from runtime.errors import EngineError, InputError

logger = logging.getLogger(__name__)

_NAME = "triton"
_PRECISIONS = ("fp32", "fp16")
"""What is looked for on a server; the first that it serves is what ``auto`` means."""
_LIMIT: dict[str, Any] = {"client_timeout": 10.0}
"""For questions that run no network, seconds."""
_PAUSES_S = (0.25, 0.5, 1.0, 2.0)
"""Before a batch that the server could not take is sent again. Networks keep no state, so that is safe."""
_NO_SUCH_MODEL = ("StatusCode.NOT_FOUND", "StatusCode.INVALID_ARGUMENT", UNAVAILABLE)


class _NotServedError(EngineError):
    """The server has no such model, or not yet."""


def preflight(*, device: int = 0) -> Preflight:
    """Never available by itself: says what it needs."""
    missing = _missing_client()
    if missing:
        return Preflight(False, missing)
    needs = "it needs a Triton server; name one with --engine triton --url grpc://HOST:8001"
    return Preflight(False, needs, version("tritonclient"), "server")


def open_session(model: Path, *, precision: str, device: int, threads: int | None, reason: str) -> Session:
    """Refused: a session needs a server; see ``TritonEngine``.

    Raises:
        EngineError: always.
    """
    raise EngineError(f"The engine {_NAME} cannot be used: {preflight(device=device).reason}.")


def choose(
    server: TritonServer, bundle: Bundle, *, engine: str = _NAME, precision: str = "auto", device: int = 0
) -> EngineChoice:
    """The choice of a server that was named, once it is seen to serve this bundle; the log says so.

    Raises:
        InputError: another engine was named.
        EngineError: it can't be used, or not in that precision; says why.
    """
    if engine != _NAME:
        raise InputError(
            f"A server is used by the engine {_NAME} only, met {engine}; voxels leave this machine for it."
        )
    module = TritonEngine(server, served_networks(bundle))
    found = module.preflight(device=device)
    if not found.available:
        raise EngineError(f"The engine {_NAME} cannot be used: {found.reason}.")
    precision = resolve_precision(precision, found, engine=_NAME)
    why = "asked for by name"
    logger.info("engine %s %s on %s in %s: %s", _NAME, found.version, found.device, precision, why)
    if not server.uses_tls and not server.is_this_machine:
        logger.warning(
            "the scan's voxels go to %s unencrypted; use grpcs:// where others share the network", server.host
        )
    return EngineChoice(module, _NAME, precision, device, why)


class TritonEngine:
    """An engine that runs some networks on one server; fulfils ``runtime.engines.base.EngineModule``."""

    def __init__(self, server: TritonServer, networks: Sequence[ServedNetwork]) -> None:
        self._server, self._networks = server, tuple(networks)

    def preflight(self, *, device: int = 0) -> Preflight:
        """Whether the server lives and serves these very networks, and in which precisions; runs nothing on it."""
        missing = _missing_client()
        if missing:
            return Preflight(False, missing)
        if device != 0:
            return Preflight(False, f"the server chooses its GPUs itself; device {device} means nothing here")
        try:
            with connection(self._server) as client:
                return _look(client, self._server, self._networks)
        except EngineError as error:
            return Preflight(False, str(error), version("tritonclient"), self._server.host)

    def open_session(
        self, model: Path, *, precision: str, device: int, threads: int | None, reason: str
    ) -> TritonSession:
        """A session of the network whose ONNX file is ``model``; its content says which model on the server that is.

        Args:
            model: the ONNX file.
            precision: ``"fp32"`` or ``"fp16"`` where the server has it, or ``"auto"``.
            device: 0.
            threads: without meaning here.
            reason: why this engine was chosen; goes into the session's info.

        Raises:
            EngineError: the server can't be reached, or doesn't serve this network in this precision.
        """
        check_model_file(model)
        digest = sha256_of(model)
        network = next((one for one in self._networks if one.sha256 == digest), None)
        if network is None:
            raise EngineError(f"{model} is none of the networks that {self._server.host} was asked for.")
        found = TritonEngine(self._server, (network,)).preflight(device=device)
        if not found.available:
            raise EngineError(f"{model.name} cannot be run: {found.reason}.")
        precision = resolve_precision(precision, found, engine=_NAME)
        info = EngineInfo(_NAME, found.version, precision, found.device, reason)
        client = connect(self._server)
        try:
            most = _config(client, self._server, network, precision).max_batch_size
        except BaseException:
            client.close()
            raise
        session = TritonSession(client, self._server, network, info, most)
        if (model.parent / BUNDLE_JSON).is_file():  # what a network must say is known of a bundle's networks alone
            try:
                _check_answer(session, model, self._server)
            except BaseException:
                session.close()
                raise
        return session


class TritonSession:
    """A network on a server; fulfils ``runtime.engines.base.Session``. Batches beyond the server's limit are split."""

    def __init__(
        self, client: Any, server: TritonServer, network: ServedNetwork, info: EngineInfo, max_batch: int
    ) -> None:
        self.info = info
        self.output_names: tuple[str, ...] = tuple(network.outputs)
        self._client, self._server, self._network, self._max_batch = client, server, network, max_batch
        self._model = network.model_name(info.precision)

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run the network; see ``runtime.engines.base.Session``."""
        network = self._network
        if self._client is None:
            raise EngineError(f"The session of {network.file} is closed.")
        check_image(image, (None, *network.image_shape), model=network.file)
        outputs = tuple(np.empty((len(image), *shape), np.float32) for shape in network.outputs.values())
        for first in range(0, len(image), self._max_batch):
            part = slice(first, first + self._max_batch)
            result = self._infer(image[part])
            for output, name in zip(outputs, network.outputs, strict=True):
                output[part] = self._read(result, name, output[part].shape)
        return outputs

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def __enter__(self) -> TritonSession:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _infer(self, image: np.ndarray) -> Any:
        from tritonclient.grpc import InferInput, InferRequestedOutput

        given = InferInput(INPUT, list(image.shape), "FP32")
        given.set_data_from_numpy(image)
        wanted = [InferRequestedOutput(name) for name in self.output_names]
        options = {"model_version": VERSION, "outputs": wanted, "client_timeout": self._server.timeout_s}
        return asked(
            self._server,
            lambda: self._client.infer(self._model, [given], **options),
            pauses_s=_PAUSES_S,
            doing=self._network.file,
        )

    def _read(self, result: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
        try:
            output = result.as_numpy(name)
        except ValueError:
            output = None
        if output is None or output.dtype != np.float32 or output.shape != shape:
            met = "nothing readable" if output is None else f"{output.dtype} {output.shape}"
            raise EngineError(
                f"The Triton server at {self._server.url} gave {met} as {name} of {self._network.file}; "
                f"float32 {shape} was expected."
            )
        return np.asarray(output)


def _look(client: Any, server: TritonServer, networks: Sequence[ServedNetwork]) -> Preflight:
    """What a connected server says of itself and of these networks."""
    if not asked(server, lambda: client.is_server_live(**_LIMIT)):
        return Preflight(False, f"the Triton server at {server.url} says that it is not live", device=server.host)
    number = str(asked(server, lambda: client.get_server_metadata(**_LIMIT)).version)
    served: dict[str, str] = {}
    faults: list[EngineError] = []
    for precision in _PRECISIONS:
        try:
            configs = [_config(client, server, network, precision) for network in networks]
        except EngineError as error:
            faults.append(error)
        else:
            served[precision] = ", ".join(sorted({kinds(config) for config in configs}))
    if not served:
        # A model that is there and wrong says more than one that is not there.
        telling = min(faults, key=lambda fault: isinstance(fault, _NotServedError))
        return Preflight(False, str(telling), number, server.host)
    device = f"{server.host} ({next(iter(served.values()))})"
    told = f"Triton {number} at {server.host} serves this bundle in {' and '.join(served)}"
    return Preflight(True, told, number, device, tuple(served))


def _config(client: Any, server: TritonServer, network: ServedNetwork, precision: str) -> Any:
    """The server's configuration of a network, once it is seen to be that network's.

    Raises:
        EngineError: the model isn't there or not ready, or is of another network, shape or type.
    """
    from tritonclient.utils import InferenceServerException

    name = network.model_name(precision)

    def is_ready() -> bool:
        try:
            return bool(client.is_model_ready(name, VERSION, **_LIMIT))
        except InferenceServerException as error:
            if error.status() in _NO_SUCH_MODEL:
                return False
            raise

    if not asked(server, is_ready):
        raise _NotServedError(_why_not_ready(client, server, network, name))
    config = asked(server, lambda: client.get_model_config(name, VERSION, **_LIMIT)).config
    faults = list(config_faults(config, network, precision))
    if faults:
        raise EngineError(
            f"the model {name} at {server.url} is not this bundle's {network.file}: {'; '.join(faults)}; "
            "write the server's model repository anew with python -m export.triton"
        )
    return config


def _check_answer(session: TritonSession, model: Path, server: TritonServer) -> None:
    """Ask a drawn window and refuse a model that does not say what the FP32 file says on this machine's processor.

    Its configuration tells which network the server was set up for; what it answers tells which one runs.

    Raises:
        EngineError: it says something else, or can't be asked.
    """
    from runtime.engines.parity import LIMITS, compare_image, faults, network_spec, probe_images, processor_session

    spec = network_spec(model)
    image, precision = probe_images(spec)[0], session.info.precision
    with processor_session(model) as reference:
        found = compare_image(reference(image), session(image), session.output_names, spec)
    wrong = faults(found, LIMITS[precision])
    if wrong:
        raise EngineError(
            f"The Triton server at {server.url} is set up for this bundle's {model.name} in {precision}, and what it "
            f"runs says something else ({'; '.join(wrong)}): its model file was exchanged, or its library computes "
            "otherwise. Write its model repository anew with python -m export.triton, and restart it."
        )
    logger.info("the Triton server at %s says of a drawn window what %s says here", server.host, model.name)


def _why_not_ready(client: Any, server: TritonServer, network: ServedNetwork, name: str) -> str:
    """What the server's index says of a model that isn't ready; a server may keep its index to itself."""
    from tritonclient.utils import InferenceServerException

    try:
        models = client.get_model_repository_index(**_LIMIT).models
    except InferenceServerException:
        models = []
    here = next((model for model in models if model.name == name), None)
    if here is not None:
        reason = here.reason or here.state or "still loading"
        return f"the model {name} at {server.url} is not ready ({reason}); see the server's log, or wait until it is"
    others = sorted(model.name for model in models if model.name.startswith(network.family))
    if others:
        return (
            f"the Triton server at {server.url} serves another bundle: it has {', '.join(others)}, not {name}; "
            "give it this one with python -m export.triton, or name its bundle with --bundle"
        )
    return (
        f"the Triton server at {server.url} has no model {name}; "
        "write one with python -m export.triton and load it there"
    )


def _missing_client() -> str:
    """Why the client's library can't be used, or the empty text."""
    hint = "install it with: pip install 'tritonclient[grpc]'"
    if find_spec("tritonclient") is None:
        return f"tritonclient is not installed; {hint}"
    try:
        import tritonclient.grpc  # noqa: F401
    except (ImportError, RuntimeError) as error:
        # Its package raises RuntimeError where its extra is missing.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        return f"tritonclient is installed but cannot be loaded ({reason}); {hint}"
    return ""
