"""Training: networks, losses, phantoms, data, loops and evaluation."""

from runtime.engines.openvino_library import refuse_telemetry

refuse_telemetry()  # before any module here imports openvino
