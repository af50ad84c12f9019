"""What the processor that trains can do."""

from __future__ import annotations

import torch


def processor_has_bf16() -> bool:
    """Whether this processor multiplies bf16 itself.

    torch's own question is also answered yes where oneDNN emulates it with AVX-512, at half the pace of fp32.
    """
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    capabilities = torch.cpu.get_capabilities()
    if capabilities["architecture"] != "x86_64":
        return True
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "avx10_2"))
