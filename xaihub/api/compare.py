"""Compare explainers and models on one image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xaihub.api.explain import Outcome, explain_many
from xaihub.evaluation.isolation import TIMEOUT
from xaihub.explainers.explainer import Explainer
from xaihub.explainers.explanation import Explanation
from xaihub.models.model import Model


def compare(
    models: Sequence[Model],
    explainers: Sequence[Explainer],
    source: str,
    *,
    target: str | None = None,
    seed: int = 0,
    timeout: float = TIMEOUT,
    watch: Callable[[str], None] = lambda _text: None,
) -> tuple[list[list[Explanation]], list[Outcome]]:
    """Explain one image with every model and explainer; without a target, each model's own prediction.

    Plugins of third parties run in a worker process, each explanation for at most `timeout` seconds (see `Isolation`).

    Returns:
        One row per model with its explanations, and the outcomes that failed.
    """
    outcomes = list(explain_many(models, explainers, [source], target=target, seed=seed, timeout=timeout, watch=watch))
    made = [item for item in outcomes if item.model]  # by model; the names of models may repeat
    width = len(explainers)
    rows = [made[place * width : (place + 1) * width] for place in range(len(models))]
    explained = [[item.explanation for item in row if item.explanation is not None] for row in rows]
    return explained, [item for item in outcomes if item.error is not None]
