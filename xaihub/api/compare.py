"""Compare explainers and models on one image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from xaihub.api.explain import Outcome, explain_many
from xaihub.errors import XaihubError
from xaihub.explainers.explainer import Explainer
from xaihub.explainers.explanation import Explanation
from xaihub.files import write_file
from xaihub.models.model import Model


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Explanations of one image: one row per model, one column per explainer; `failures` has those that failed."""

    rows: list[list[Explanation]]
    failures: list[Outcome]

    def save_png(self, path: str | Path) -> Path:
        """Write the labelled grid and return its path.

        Raises:
            XaihubError: Every explainer failed.
            OutputError: The file cannot be written.
        """
        from xaihub.explainers.rendering import grid, png_bytes

        rows = [row for row in self.rows if row]
        if not rows:
            raise XaihubError("nothing to compare: every explainer failed")
        return write_file(Path(path), png_bytes(grid(rows)))


def compare(
    models: Sequence[Model],
    explainers: Sequence[Explainer],
    source: str,
    *,
    target: str | None = None,
    seed: int = 0,
    watch: Callable[[str], None] = lambda _text: None,
) -> Comparison:
    """Explain one image with every model and explainer; without a target, each model's own prediction."""
    outcomes = list(explain_many(models, explainers, [source], target=target, seed=seed, watch=watch))
    made = [item for item in outcomes if item.model]  # by model; the names of models may repeat
    width = len(explainers)
    rows = [made[place * width : (place + 1) * width] for place in range(len(models))]
    return Comparison(
        rows=[[item.explanation for item in row if item.explanation is not None] for row in rows],
        failures=[item for item in outcomes if item.error is not None],
    )
