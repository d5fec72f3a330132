"""Peak operations and memory bandwidth of some chips, as their makers state them: dense, without sparsity, one chip.

"float32" is what a matrix product of float32 numbers gets by default: TF32 on NVIDIA's and AMD's matrix units.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from eggroll.core.errors import UsageError

ITEMSIZE = MappingProxyType({"float32": 4, "bfloat16": 2, "float16": 2, "float8": 1, "int8": 1})
"""Bytes of a number."""


@dataclass(frozen=True)
class Chip:
    """One accelerator.

    Args:
      tera: 10¹² operations per second, by dtype.
      bandwidth: bytes per second of its memory.
      source: where its maker says so.
    """

    name: str
    tera: MappingProxyType[str, float]
    bandwidth: float
    source: str

    def peak(self, dtype: str) -> float:
        """Operations per second.

        Raises:
          UsageError: the chip has no units for that dtype.
        """
        if dtype not in self.tera:
            raise UsageError(
                f"expected a dtype of {self.name}, {', '.join(self.tera)}, got {dtype!r}; choose one of these"
            )
        return self.tera[dtype] * 1e12

    def itemsize(self, dtype: str) -> int:
        """Bytes of a number."""
        return ITEMSIZE[dtype]

    def ridge(self, dtype: str) -> float:
        """Operations per byte from which the chip computes rather than waits for its memory."""
        return self.peak(dtype) / self.bandwidth


def _chip(name: str, tera: dict[str, float], terabytes: float, source: str) -> Chip:
    return Chip(name, MappingProxyType(tera), terabytes * 1e12, source)


_HOPPER = {"float32": 494.7, "bfloat16": 989.4, "float16": 989.4, "float8": 1978.9, "int8": 1978.9}

CHIPS = MappingProxyType(
    {
        "a100": _chip(
            "A100 SXM 80 GB",
            {"float32": 156.0, "bfloat16": 312.0, "float16": 312.0, "int8": 624.0},
            2.039,
            "NVIDIA A100 Tensor Core GPU data sheet, A100 80GB SXM",
        ),
        "h100": _chip("H100 SXM", _HOPPER, 3.35, "NVIDIA H100 Tensor Core GPU data sheet, H100 SXM; halved, see above"),
        "h200": _chip("H200 SXM", _HOPPER, 4.8, "NVIDIA H200 Tensor Core GPU data sheet, H200 SXM; halved"),
        "b200": _chip(
            "B200 SXM",
            {"float32": 1100.0, "bfloat16": 2250.0, "float16": 2250.0, "float8": 4500.0, "int8": 4500.0},
            8.0,
            "NVIDIA Blackwell data sheet, HGX B200 over eight; halved",
        ),
        "mi300x": _chip(
            "MI300X",
            {"float32": 653.7, "bfloat16": 1307.4, "float16": 1307.4, "float8": 2614.9, "int8": 2614.9},
            5.3,
            "AMD Instinct MI300X data sheet",
        ),
        "v5e": _chip(
            "TPU v5e", {"bfloat16": 197.0, "int8": 393.0}, 0.819, "Google Cloud, TPU v5e, system architecture"
        ),
        "v6e": _chip(
            "TPU v6e", {"bfloat16": 918.0, "int8": 1836.0}, 1.638, "Google Cloud, TPU v6e, system architecture"
        ),
    }
)
"""By the name that the command takes. NVIDIA states tensor-core peaks with 2:4 sparsity, twice the dense ones here."""
