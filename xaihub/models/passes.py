"""Forward passes: their settings, and how many there were."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from xaihub.errors import ParameterError
from xaihub.params import Precision

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}

# Masked images that were evaluated in this thread.
MASKED_ROWS: ContextVar[int] = ContextVar("masked_rows", default=0)


@dataclass(kw_only=True)
class Runtime:
    """Settings of forward passes; all but the precision leave results as they are, up to rounding.

    Attributes:
        batch_size: Rows per forward pass; None chooses the fastest that fits into memory.
        memory_budget: Memory limit of one forward pass in bytes, or None to choose by device.
        threads: CPU threads of forward passes without a graph; None chooses between those of the process and one.
        backend: What runs forward passes without a graph: "eager" (torch), the name of a registered backend, or "auto",
            which uses an installed one as soon as there are enough passes to pay for its preparation.
        precision: Of the network's layers: "f32", or on request "bf16" or "f16"; scores are returned in float32.
        progress: Called as `progress(done, total)` while masks are evaluated; `total` is 0 if it is unknown.
        preview: Called with each preliminary explanation of a method that refines its map within a budget of seconds.
    """

    batch_size: int | None = None
    memory_budget: int | None = None
    threads: int | None = None
    backend: str = "auto"
    precision: Precision = "f32"
    progress: Callable[[int, int], None] | None = None
    preview: Callable[[Any], None] | None = None

    def record(self) -> dict[str, int | str | None]:
        """Return everything but `progress`, as JSON types."""
        return {name: value for name, value in vars(self).items() if name != "progress"}


def check_precision(precision: str, device: torch.device) -> None:
    """Check that a device computes in a precision.

    Raises:
        ParameterError: It is unknown, or the CPU would only imitate it.
    """
    if precision not in ("f32", *DTYPES):
        raise ParameterError(f"there is no precision {precision!r}", hint="use f32, bf16 or f16")
    able = {"bf16": torch.ops.mkldnn._is_mkldnn_bf16_supported, "f16": torch.ops.mkldnn._is_mkldnn_fp16_supported}
    if device.type == "cpu" and precision != "f32" and not able[precision]():
        raise ParameterError(f"this CPU does not compute in {precision}", hint="use --precision f32")


@dataclass
class Counts:
    """The numbers of forward and backward passes through the network; each row of a batch is one pass."""

    forward_passes: int = 0
    backward_passes: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Return the sums."""
        return Counts(self.forward_passes + other.forward_passes, self.backward_passes + other.backward_passes)

    def __sub__(self, other: Counts) -> Counts:
        """Return the differences."""
        return Counts(self.forward_passes - other.forward_passes, self.backward_passes - other.backward_passes)
