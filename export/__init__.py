"""Export: trained networks to ONNX and bundles, checked against torch."""

from runtime.engines.ort_library import refuse_telemetry

refuse_telemetry()  # before any module here imports onnxruntime
