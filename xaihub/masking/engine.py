"""Evaluation of streams of masks in batches that fit into memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from xaihub.errors import ModelError
from xaihub.masking.features import Features
from xaihub.masking.removal import Removal
from xaihub.models.model import Model
from xaihub.models.passes import MASKED_ROWS
from xaihub.models.tuning import Tuning

# Bytes per forward pass on a CPU, from which the search for the fastest batch begins. Above it the C library returns
# freed activations to the system, and every pass causes new page faults. Measured with EfficientNet-Lite0 at 224
# pixels, channels-last, one thread: 13.6 ms per row for 2 to 4 rows (80 MiB), 23.6 ms for 8.
CPU_BUDGET = 80 * 2**20
CPU_LARGEST = 2**30  # bytes, where the search ends
LARGEST_ROWS = 1024


@dataclass(frozen=True)
class MaskedBatch:
    """One evaluated batch: (n, ...) draws, their (n, 1, H, W) masks, and (n, K) logits."""

    draws: Tensor
    masks: Tensor
    outputs: Tensor


def masked_forward_passes(
    model: Model,
    image: Tensor,
    draws: Tensor | Iterable[Tensor],
    *,
    removal: Removal,
    expand: Callable[[Tensor], Tensor] | None = None,
    done: int = 0,
    total: int | None = None,
) -> Iterator[MaskedBatch]:
    """Evaluate the model on one image under many masks, and yield the outputs batch by batch.

    Several targets can share these passes, because `outputs` holds all logits. Batches have the number of rows that is
    fastest on this machine, which the first passes find, unless `model.runtime` sets one; if memory runs out, the batch
    is halved and evaluated again. A failed batch is counted among the model's forward passes only if the network itself
    had finished.

    Args:
        model: The model.
        image: (C, H, W), in the model's units.
        draws: Masks, or a compact form of them, as one tensor with n rows or as an iterable of such tensors.
        removal: The removal operator for masked pixels.
        expand: Converts a batch of draws to (n, 1, H, W) masks with 1 for kept pixels; by default, draws are masks.
        done: Rows of earlier calls, for the progress bar of a method that makes several calls.
        total: Rows of all calls, for the progress bar; not needed if `draws` is one tensor.

    Raises:
        ModelError: A single row does not fit into memory, or a logit is NaN or infinite.
    """
    image = image.to(model.device)
    stream, finite = _Stream(draws), _Finite(model)
    if total is None and isinstance(draws, Tensor):
        total = done + len(draws)
    while (part := stream.take(batch_rows(model))) is not None:
        batch, started = None, time.perf_counter()
        try:
            batch = _evaluate(model, image, part, removal, expand, coming=(total or done) - done)
        except (RuntimeError, MemoryError) as error:
            texts = ("out of memory", "can't allocate memory", "not enough memory")
            if not isinstance(error, MemoryError) and not any(text in str(error).lower() for text in texts):
                raise
            if len(part) == 1:
                raise ModelError(
                    f"out of memory on {model.device} with a single row of {model.name!r}",
                    hint="use a smaller model or --device cpu",
                ) from error
        # Only here, after the exception and the tensors of the failed pass are gone, can memory be released.
        if batch is None:
            if model.device.type == "cuda":
                torch.cuda.empty_cache()
            _tuning(model).limit(len(part) // 2)
            stream.put_back(part)
            continue
        _tuning(model).note(len(part), time.perf_counter() - started)
        done += len(part)
        MASKED_ROWS.set(MASKED_ROWS.get() + len(part))
        if model.runtime.progress is not None:
            model.runtime.progress(done, total or 0)
        finite.check(batch.outputs)
        yield batch
    finite.finish()


def coalition_scores(
    model: Model,
    image: Tensor,
    features: Features,
    coalitions: Tensor | Iterable[Tensor],
    *,
    removal: Removal,
    score: Callable[[Tensor], Tensor],
    done: int = 0,
    total: int | None = None,
) -> Tensor:
    """Return the score of each coalition: (n,) for (n, d) coalitions of `features`, on the CPU.

    `score` maps (n, K) logits to (n,) or (n, ...) scores; `done` and `total` are as in `masked_forward_passes`.
    """
    batches = masked_forward_passes(
        model, image, coalitions, removal=removal, expand=features.masks, done=done, total=total
    )
    return torch.cat([score(batch.outputs) for batch in batches]).cpu()  # a GPU is waited for once


def batch_rows(model: Model) -> int:
    """Return the number of rows of the next forward pass: as requested, or the fastest that fits into memory."""
    return _tuning(model).now[0]


def _tuning(model: Model) -> Tuning:
    return model.executor.tuning(model, first=lambda: _rows(model, CPU_BUDGET), most=lambda: _rows(model, CPU_LARGEST))


def _rows(model: Model, cpu_budget: int) -> int:
    """Return how many rows fit into the memory budget, which a GPU has by itself."""
    budget, kind = model.runtime.memory_budget, model.device.type
    if budget is None:
        budget = cpu_budget
        if kind == "cuda":
            budget = torch.cuda.mem_get_info(model.device)[0] // 2
        elif kind == "mps":
            budget = max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()) // 2
    return max(1, min(LARGEST_ROWS, budget // model.row_bytes))


def _evaluate(
    model: Model,
    image: Tensor,
    draws: Tensor,
    removal: Removal,
    expand: Callable[[Tensor], Tensor] | None,
    coming: int,
) -> MaskedBatch:
    # inference_mode must not span a yield, or the caller would run in it as well.
    with torch.inference_mode(), model.executing(coming):
        # From pinned memory, the copy to a GPU overlaps with the passes before.
        sent = draws.pin_memory() if model.device.type == "cuda" and not draws.is_cuda else draws
        masks = sent.to(model.device, non_blocking=True)
        if expand is not None:
            with torch.autocast(model.device.type, enabled=False):  # mixed precision is only for the network
                masks = expand(masks)
        with model.autocast():
            outputs = removal(model, image, masks).float()
    return MaskedBatch(draws, masks, outputs)


class _Finite:
    """Checks that all scores are numbers; on a GPU those of the batch before, so that it never waits for Python."""

    def __init__(self, model: Model) -> None:
        self._model, self._open = model, list[Tensor]()

    def check(self, outputs: Tensor) -> None:
        self._open.append(outputs.isfinite().all())
        while len(self._open) > outputs.is_cuda:
            self._require(self._open.pop(0))

    def finish(self) -> None:
        for found in self._open:
            self._require(found)

    def _require(self, found: Tensor) -> None:
        if not bool(found):
            raise ModelError(f"model {self._model.name!r} returned NaN or infinite class scores for a masked image")


class _Stream:
    """Rows on demand, from one tensor or an iterable of tensors of any length."""

    def __init__(self, draws: Tensor | Iterable[Tensor]) -> None:
        self._source = iter([draws] if isinstance(draws, Tensor) else draws)
        self._held: list[Tensor] = []

    def take(self, rows: int) -> Tensor | None:
        while sum(map(len, self._held)) < rows:
            piece = next(self._source, None)
            if piece is None:
                break
            self._held.append(piece)
        if not any(map(len, self._held)):
            return None
        joined = self._held[0] if len(self._held) == 1 else torch.cat(self._held)
        self._held = [joined[rows:]] if len(joined) > rows else []
        return joined[:rows]

    def put_back(self, rows: Tensor) -> None:
        self._held.insert(0, rows)
