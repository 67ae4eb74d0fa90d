"""Compare explainers and models on one image."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xaihub.api.explain import Outcome, explain_many
from xaihub.api.loading import listed, loaded_models, made
from xaihub.api.registration import default_hub
from xaihub.explainers.explainer import Explainer
from xaihub.explainers.explanation import Explanation
from xaihub.hub import DEFAULT_EXPLAINER, DEFAULT_MODEL, DEFAULT_TIMEOUT
from xaihub.models.model import Model
from xaihub.models.similarity import like as similar


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        explanations: One row per model with its explanations.
        failures: The explanations that failed, with their errors.
    """

    explanations: list[list[Explanation]]
    failures: list[Outcome]

    def save_png(self, path: str | Path) -> Path:
        """Write one labelled figure, with one row per model and one column per explainer; return its path."""
        from xaihub.explainers.rendering import grid, png_bytes
        from xaihub.files import write_file

        return write_file(Path(path), png_bytes(grid([row for row in self.explanations if row])))


def compare(
    image: str | Path | None = None,
    *,
    models: str | Model | Sequence[str | Model] = DEFAULT_MODEL,
    explainers: str | type[Explainer] | Explainer | Sequence[str | type[Explainer] | Explainer] = DEFAULT_EXPLAINER,
    params: Mapping[str, Any] | None = None,
    target: str | None = None,
    like: Any = None,
    page: int | None = None,
    seed: int = 0,
    timeout: float = DEFAULT_TIMEOUT,
    **loading: Any,
) -> Comparison:
    """Compare explainers and models on one image, as `xaihub compare` does.

    Args:
        image: A path; None is the sample photo.
        models: Models, or their names.
        explainers: Explainers, their classes or names.
        params: Parameters of every explainer given by name or class that has them, or of one: {"rise.masks": 500}.
        target: The class to explain; without it, each model's own prediction.
        like: An image, or a list of images: explain the similarity to it, by default to the first rather than the
            second of two.
        page: The page of a file with several pages or frames, from 1.
        seed: Seed of every random choice.
        timeout: Limit for one explanation by a third-party plugin, which runs in a worker process, in seconds; 0 for no
            limit and no worker.
        loading: For models given by name: device, checkpoint, classes, layer, outputs, batch_size, autocast.

    Raises:
        XaihubError: An argument cannot be used. What fails for one model and explainer is in `failures`.

    Example::

        xaihub.compare("cat.jpg", explainers=["gradcam", "rise"], params={"masks": 500}).save_png("cat.png")
    """
    from xaihub.images import sample_photo

    hub = default_hub()
    methods = made(Explainer, hub.explainers, hub.get_explainer, listed(explainers), params)
    networks = loaded_models(listed(models), **loading)
    if like is not None:
        networks = [similar(network, like if isinstance(like, (list, tuple)) else [like]) for network in networks]
    source = os.fspath(sample_photo() if image is None else image)
    rows, failures = compare_models(networks, methods, source, target=target, page=page, seed=seed, timeout=timeout)
    return Comparison(explanations=rows, failures=failures)


def compare_models(
    models: Sequence[Model],
    explainers: Sequence[Explainer],
    source: str,
    *,
    target: str | None = None,
    page: int | None = None,
    seed: int = 0,
    timeout: float = DEFAULT_TIMEOUT,
    watch: Callable[[str], None] = lambda _text: None,
) -> tuple[list[list[Explanation]], list[Outcome]]:
    """Explain one image with every model and explainer; without a target, each model's own prediction.

    Plugins of third parties run in a worker process, each explanation for at most `timeout` seconds (see `Isolation`).

    Returns:
        One row per model with its explanations, and the outcomes that failed.
    """
    wanted: dict[str, Any] = {"target": target, "page": page, "seed": seed, "timeout": timeout}
    outcomes = list(explain_many(models, explainers, [source], watch=watch, **wanted))
    made = [item for item in outcomes if item.model]  # by model; the names of models may repeat
    width = len(explainers)
    rows = [made[place * width : (place + 1) * width] for place in range(len(models))]
    explained = [[item.explanation for item in row if item.explanation is not None] for row in rows]
    return explained, [item for item in outcomes if item.error is not None]
