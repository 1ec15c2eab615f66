"""What this processor is good at.

Owns the question in which precision a model learns fastest on it: where it has no instructions for products
of bfloat16, these are imitated and take several times as long as those of float32.
"""

from typing import Literal

import torch

_PRODUCTS_OF_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")

Precision = Literal["bfloat16", "float32"]


def fastest_precision() -> Precision:
    """Return bfloat16 where the processor multiplies matrices of it by instructions of its own."""
    capabilities = torch.cpu.get_capabilities()
    has_bfloat16 = any(capabilities.get(name) for name in _PRODUCTS_OF_BFLOAT16)
    return "bfloat16" if has_bfloat16 else "float32"
