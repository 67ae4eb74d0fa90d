"""Training progress, as saved in a checkpoint, the sums behind an epoch's means, and what must stay finite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from xaihub.errors import TrainingError
from xaihub.objective import Losses

LOOK = 50  # steps between two looks at the losses of an accelerator


@dataclass(kw_only=True)
class Progress:
    """How far a run has come; JSON types only.

    Attributes:
        epoch: Completed epochs.
        epoch_step: Completed optimizer steps of the current epoch.
        step: Completed optimizer steps in total.
        sums: The `Sums` of the current epoch so far.
        seconds: Time spent on the current epoch so far.
        history: One record per epoch.
        best: The best epoch (counted from 1), or 0.
        done: Whether training has ended.
        terms: The names of the terms that the loss has had so far.
    """

    epoch: int = 0
    epoch_step: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: int = 0
    done: bool = False
    terms: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Refuse counters that contradict each other.

        Raises:
            ValueError: They do.
        """
        epochs = [record.get("epoch") for record in self.history]
        if (
            epochs != list(range(1, self.epoch + 1))
            or not 0 <= self.best <= self.epoch
            or min(self.epoch_step, self.step) < 0
        ):
            raise ValueError("the counters contradict each other")


class Sums:
    """Weighted sums of losses, notes and correct predictions, by name; they stay on the device that computes them."""

    def __init__(self, values: Mapping[str, float]) -> None:
        """Continue from the given sums."""
        self._values: dict[str, Any] = dict(values)

    @property
    def values(self) -> dict[str, float]:
        """The sums in JSON types; reading them waits for the device."""
        return {name: float(value) for name, value in self._values.items()}

    def add(self, losses: Losses, labels: Tensor, fraction: float) -> None:
        """Add a batch's losses, weighted by its fraction of a step (or of all validation rows)."""
        classes = labels if labels.ndim == 1 else labels.argmax(1)  # of mixed images, the class with the larger part
        found: dict[str, Any] = {
            "_loss": losses.total,
            "_accuracy": (losses.logits.detach().argmax(1) == classes).float().mean(),
            **{f"/{name}": term for name, term in losses.terms.items()},
            **{f"/{name}": value for name, value in losses.notes.items()},
            "fraction": 1.0,
        }
        for name, value in found.items():
            self._values[name] = self._values.get(name, 0.0) + _wide(value) * fraction

    def means(self, accelerator: Any, part: str) -> dict[str, float]:
        """Return the means over all processes: "PART_loss", "PART_accuracy", and "PART/NAME" for terms and notes."""
        values = self.values
        names = sorted(values)
        if not names:
            return {}
        table = torch.tensor([values[name] for name in names], dtype=torch.float64, device="cpu")
        if accelerator.num_processes > 1:
            table = accelerator.reduce(table.float().to(accelerator.device), reduction="sum").double().cpu()
        sums = dict(zip(names, table.tolist(), strict=True))
        total = sums.pop("fraction")
        return {f"{part}{name}": value / total for name, value in sums.items()}


def _wide(value: Any) -> Any:
    """Return a number, or a scalar tensor in the widest type of its device."""
    if not isinstance(value, Tensor):
        return float(value)
    return value.detach().to(torch.float32 if value.device.type == "mps" else torch.float64)


class Finite:
    """Refuses losses and gradients that are not finite.

    On a CPU each is looked at as it comes, before the weights are updated. On an accelerator every look would wait for
    the device, so that they are looked at together, every `LOOK` steps and before anything is saved.
    """

    def __init__(self, total: int) -> None:
        """Take the number of steps of the run, for the message."""
        self._total = total
        self._noted: list[tuple[int, str, Tensor]] = []

    def losses(self, step: int, losses: Losses) -> None:
        """Note the terms of a loss, and their sum."""
        named = {f"the loss {name!r}": term for name, term in losses.terms.items()}
        self._note(step, {**named, "the loss": losses.total})

    def gradient(self, step: int, norm: Tensor) -> None:
        """Note the norm of the gradient."""
        self._note(step, {"the gradient": norm})

    def _note(self, step: int, values: Mapping[str, Tensor]) -> None:
        self._noted += [(step, what, value.detach().float()) for what, value in values.items()]
        if self._noted[-1][2].device.type == "cpu" or step - self._noted[0][0] >= LOOK:
            self.look()

    def look(self) -> None:
        """Look at what was noted since the last look.

        Raises:
            TrainingError: Some of it is not finite; names the first.
        """
        noted, self._noted = self._noted, []
        finite = torch.stack([value for *_, value in noted]).isfinite().tolist() if noted else []
        for (step, what, _), good in zip(noted, finite, strict=True):
            if not good:
                raise TrainingError(
                    f"{what} is not finite at step {step + 1} of {self._total}",
                    hint="the last checkpoint is kept; try a lower --lr, --set clip or --precision fp32",
                )
