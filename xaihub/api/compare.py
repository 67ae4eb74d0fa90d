"""Compare explainers and models on one image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from xaihub.api.explain import Outcome, explain_many
from xaihub.api.loading import listed, loaded_models, made
from xaihub.api.registration import default_hub
from xaihub.errors import OutputError
from xaihub.explainers.budget import Budget, budgeted, expected_passes
from xaihub.explainers.explainer import Explainer
from xaihub.explainers.explanation import Explanation, summary
from xaihub.explainers.heat import Drawing
from xaihub.explainers.page.document import framed
from xaihub.files import write_file
from xaihub.hub import DEFAULT_EXPLAINER, DEFAULT_MODEL, DEFAULT_TIMEOUT
from xaihub.models.model import Model
from xaihub.models.prompts import aimed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from xaihub.images import SourceImage


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        explanations: One row per model with its explanations.
        failures: The explanations that failed, with their errors.
    """

    explanations: list[list[Explanation]]
    failures: list[Outcome]

    def to_frame(self) -> pd.DataFrame:
        """Return a pandas table, one row per explanation and per failure: model, explainer, target, cost, error."""
        import pandas as pd

        made = [summary(item) for row in self.explanations for item in row]
        failed = [{"model": o.model, "explainer": o.explainer, "error": str(o.error)} for o in self.failures]
        return pd.DataFrame([*made, *failed])

    def html(self, **drawing: Unpack[Drawing]) -> str:
        """Return a self-contained HTML page: every map side by side with one opacity slider, sets, costs, failures.

        Raises:
            OutputError: There is no explanation to show.
            ParameterError: The colour map or the opacity of `drawing` cannot be used.
        """
        from xaihub.explainers.page.explanations import explanations_page

        failed = [
            {"who": o.explainer or o.source, "model": o.model, "reason": str(o.error), "count": 1, "images": ""}
            for o in self.failures
        ]
        return explanations_page(self._all(), failed, **drawing)

    def plot(self, **drawing: Unpack[Drawing]) -> Figure:
        """Return a matplotlib figure with one row per model and one column per explainer.

        Raises:
            OutputError: There is no explanation to show.
            ParameterError: The colour map or the opacity of `drawing` cannot be used.
        """
        from matplotlib.figure import Figure

        drawn = self._grid(drawing)
        figure = Figure(figsize=(drawn.width / 100, drawn.height / 100))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(drawn)
        axes.set_axis_off()
        return figure

    def save_png(self, path: str | Path, **drawing: Unpack[Drawing]) -> Path:
        """Write one labelled figure, with one row per model and one column per explainer; return its path.

        Raises:
            OutputError: There is no explanation to show, or the file cannot be written.
            ParameterError: The colour map or the opacity of `drawing` cannot be used.
        """
        from xaihub.explainers.rendering import png_bytes

        return write_file(path, png_bytes(self._grid(drawing)))

    def save(self, path: str | Path, **drawing: Unpack[Drawing]) -> Path:
        """Write the comparison as the suffix of `path` says: .html (page), .png (figure) or .csv (table).

        Raises:
            OutputError: The suffix is another one, or as `save_png`.
            ParameterError: The colour map or the opacity of `drawing` cannot be used.
        """
        suffix = Path(path).suffix
        if suffix == ".png":
            return self.save_png(path, **drawing)
        if suffix == ".csv":
            return write_file(path, self.to_frame().to_csv(index=False))
        if suffix != ".html":
            raise OutputError(f"cannot save a comparison as {str(path)!r}", hint="end it in .html, .png or .csv")
        return write_file(path, self.html(**drawing))

    def _all(self) -> list[Explanation]:
        found = [item for row in self.explanations for item in row]
        if not found:
            raise OutputError("there is no explanation to show, because every one failed")
        return found

    def _grid(self, drawing: Drawing) -> Image:
        from xaihub.explainers.rendering import grid

        self._all()
        return grid([row for row in self.explanations if row], **drawing)

    def _repr_html_(self) -> str | None:
        return framed(self.html()) if any(self.explanations) else None


def compare(
    image: Any = None,
    *,
    models: str | Model | Sequence[str | Model] = DEFAULT_MODEL,
    explainers: str | type[Explainer] | Explainer | Sequence[str | type[Explainer] | Explainer] = DEFAULT_EXPLAINER,
    params: Mapping[str, Any] | None = None,
    target: str | None = None,
    like: Any = None,
    page: int | None = None,
    seed: int = 0,
    timeout: float = DEFAULT_TIMEOUT,
    text: str | Sequence[str] = (),
    budget: Budget | str | float | None = None,
    **loading: Any,
) -> Comparison:
    """Compare explainers and models on one image, as `xaihub compare` does.

    Args:
        image: A path, "-", bytes, a PIL image or an array; None is the sample photo.
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
        text: Texts, as classes of models with a text encoder.
        budget: Passes for each explanation (500), or seconds ("10s"); see `explain`.
        loading: For models given by name: device, checkpoint, classes, layer, outputs, input, batch_size, threads,
            backend, precision.

    Raises:
        XaihubError: An argument cannot be used. What fails for one model and explainer is in `failures`.

    Example::

        xaihub.compare("cat.jpg", explainers=["gradcam", "rise"], params={"masks": 500}).save_png("cat.png")
    """
    from xaihub.images import load_image, sample_photo

    hub = default_hub()
    methods = made(Explainer, hub.explainers, hub.get_explainer, listed(explainers), params)
    methods = budgeted(methods, budget)
    references = [] if like is None else like if isinstance(like, (list, tuple)) else [like]
    loaded = loaded_models(listed(models), **loading)
    networks = [aimed(model, like_images=references, texts=listed(text)) for model in loaded]
    source = load_image(sample_photo() if image is None else image, page=page)
    rows, failures = compare_models(networks, methods, source, target=target, seed=seed, timeout=timeout)
    return Comparison(explanations=rows, failures=failures)


def compare_models(
    models: Sequence[Model],
    explainers: Sequence[Explainer],
    source: str | SourceImage,
    *,
    target: str | None = None,
    page: int | None = None,
    seed: int = 0,
    timeout: float = DEFAULT_TIMEOUT,
    watch: Callable[[str], None] = lambda _text: None,
    interrupted: Callable[[], None] | None = None,
) -> tuple[list[list[Explanation]], list[Outcome]]:
    """Explain one image with every model and explainer; without a target, each model's own prediction.

    Explainers with few passes run first. On Ctrl-C, `interrupted` is called if it is given, and what is finished is
    returned; otherwise the exception goes on.

    Plugins of third parties run in a worker process, each explanation for at most `timeout` seconds (see `Isolation`).

    Returns:
        One row per model with its explanations, and the outcomes that failed.
    """
    wanted: dict[str, Any] = {"target": target, "page": page, "seed": seed, "timeout": timeout}
    order = sorted(range(len(explainers)), key=lambda place: expected_passes(explainers[place]))
    fast_first, outcomes = [explainers[place] for place in order], list[Outcome]()
    try:
        for one in explain_many(models, fast_first, [source], watch=watch, **wanted):
            outcomes.append(one)
    except KeyboardInterrupt:
        if interrupted is None:
            raise
        interrupted()
    made = [item for item in outcomes if item.model]  # by model; the names of models may repeat
    width = len(explainers)
    rows = [made[place * width : (place + 1) * width] for place in range(len(models))]
    # Shown in the order in which they were asked for.
    sorted_rows = [
        [item for _, item in sorted(zip(order, row, strict=False), key=lambda pair: pair[0])] for row in rows
    ]
    explained = [[item.explanation for item in row if item.explanation is not None] for row in sorted_rows]
    return explained, [item for item in outcomes if item.error is not None]
