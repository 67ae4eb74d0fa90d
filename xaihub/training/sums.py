"""Means over an epoch, kept as sums that survive an interruption."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xaihub.objective import Losses

__all__ = ["Sums"]


class Sums:
    """Weighted sums of losses, notes and hits, by name.

    Attributes:
        values: The sums; JSON types only.
    """

    def __init__(self, values: dict[str, float]) -> None:
        """Go on from the given sums."""
        self.values = dict(values)

    def add(self, losses: Losses, labels: Tensor, share: float) -> None:
        """Add what one batch cost, by its share of a step (or of all rows held out)."""
        hits = (losses.logits.detach().argmax(1) == labels).float().mean()
        found: dict[str, Any] = {
            "loss": losses.total.detach(),
            "accuracy": hits,
            **{f"loss/{name}": term.detach() for name, term in losses.terms.items()},
            **{f"note/{name}": value for name, value in losses.notes.items()},
        }
        for name, value in found.items():
            self.values[name] = self.values.get(name, 0.0) + float(value) * share
        self.values["share"] = self.values.get("share", 0.0) + share

    def means(self, accelerator: Any, part: str) -> dict[str, float]:
        """Return the means over all processes: "PART_loss", "PART_accuracy", and "PART/NAME" for terms and notes."""
        names = sorted(self.values)
        if not names:
            return {}
        table = torch.tensor([self.values[name] for name in names], dtype=torch.float64, device="cpu")
        if accelerator.num_processes > 1:
            table = accelerator.reduce(table.float().to(accelerator.device), reduction="sum").double().cpu()
        sums = dict(zip(names, table.tolist(), strict=True))
        share = sums.pop("share")
        return {_name(name, part): value / share for name, value in sums.items()}


def _name(name: str, part: str) -> str:
    kind, slash, rest = name.partition("/")
    return f"{part}/{rest}" if slash else f"{part}_{kind}"
