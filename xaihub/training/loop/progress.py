"""Training progress, as saved in a checkpoint, and the sums behind an epoch's means."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from xaihub.objective import Losses


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
    """

    epoch: int = 0
    epoch_step: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: int = 0
    done: bool = False

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
    """Weighted sums of losses, notes and correct predictions, by name.

    Attributes:
        values: The sums; JSON types only.
    """

    def __init__(self, values: dict[str, float]) -> None:
        """Continue from the given sums."""
        self.values = dict(values)

    def add(self, losses: Losses, labels: Tensor, fraction: float) -> None:
        """Add a batch's losses, weighted by its fraction of a step (or of all validation rows)."""
        found: dict[str, Any] = {
            "_loss": losses.total.detach(),
            "_accuracy": (losses.logits.detach().argmax(1) == labels).float().mean(),
            **{f"/{name}": term.detach() for name, term in losses.terms.items()},
            **{f"/{name}": value for name, value in losses.notes.items()},
            "fraction": 1.0,
        }
        for name, value in found.items():
            self.values[name] = self.values.get(name, 0.0) + float(value) * fraction

    def means(self, accelerator: Any, part: str) -> dict[str, float]:
        """Return the means over all processes: "PART_loss", "PART_accuracy", and "PART/NAME" for terms and notes."""
        names = sorted(self.values)
        if not names:
            return {}
        table = torch.tensor([self.values[name] for name in names], dtype=torch.float64, device="cpu")
        if accelerator.num_processes > 1:
            table = accelerator.reduce(table.float().to(accelerator.device), reduction="sum").double().cpu()
        sums = dict(zip(names, table.tolist(), strict=True))
        total = sums.pop("fraction")
        return {f"{part}{name}": value / total for name, value in sums.items()}
