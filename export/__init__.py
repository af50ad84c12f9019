"""Export: trained networks to ONNX and bundles, checked against torch."""
