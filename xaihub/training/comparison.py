"""Train the baseline as well: the same plan without the objective, and both results side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from xaihub.errors import ModelError, ParameterError
from xaihub.hub import DEFAULT_EXPLAINER, Hub
from xaihub.models.cards import read_card
from xaihub.specs import Judged
from xaihub.training.config import Config
from xaihub.training.run import Outcome, train

if TYPE_CHECKING:
    from xaihub.training.loop.trainer import Watch

BASELINE = "cross_entropy"
# What is scored if the objective names nothing.
JUDGED = (Judged(explainer=DEFAULT_EXPLAINER, metrics=("deletion", "insertion")),)
FIGURES = {
    "accuracy": "val_accuracy",
    "balanced accuracy": "val_balanced_accuracy",
    "calibration error": "val_calibration_error",
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A trained model beside its baseline.

    Attributes:
        trained: The run with the objective.
        baseline: The run without it.
        figures: Each figure of the baseline and of the trained model; None if it is not known.
        reasons: Why an explanation metric was refused, by its name.
        images: Number of images on which explanations were scored.
    """

    trained: Outcome
    baseline: Outcome
    figures: Mapping[str, tuple[float | None, float | None]]
    reasons: Mapping[str, str]
    images: int


def train_both(
    hub: Hub,
    config: Config,
    folder: str | Path,
    *,
    resume: bool,
    device: str = "auto",
    held_out: str | Path | None = None,
    images: int = 8,
    watch: Watch = lambda _text, _done, _total: None,
    tell: Callable[[str], None] = lambda _text: None,
) -> Comparison:
    """Train with the objective, then without it in the subfolder baseline; score both on the same held-out images.

    The explanation metrics are those that the objective names for a sweep, else deletion and insertion of the default
    explainer (our choice). The other arguments are those of `train`.

    Raises:
        XaihubError: As for `train`, or the objective is itself the baseline.
    """
    from xaihub.training.judging import judge, make_judges

    spec = hub.objectives.get(config.objective)
    if spec.name == BASELINE:
        raise ParameterError(f"--compare trains {BASELINE} as well, and needs another --objective")
    hub.get_objective(spec.name, **config.parameters).check_parameters()
    judges = make_judges(hub, spec.judged or JUDGED)
    if config.model.lower().endswith((".yaml", ".yml")) and read_card(config.model).objective:
        raise ModelError(
            f"--compare has no baseline: {config.model!r} was already changed by an objective",
            hint="start from the original model",
        )
    below = Path(folder) / "baseline"
    plain = msgspec.structs.replace(config, objective=BASELINE, parameters={})
    trained = train(hub, config, folder, resume=resume, device=device, held_out=held_out, watch=watch, tell=tell)
    tell("the baseline:")
    baseline = train(hub, plain, below, resume=resume and below.exists(), device=device, watch=watch, tell=tell)
    found = []
    for plan, outcome in ((plain, baseline), (config, trained)):
        model = hub.load_model(str(outcome.card), device=device)
        found.append(judge(plan, model, judges, images=images, shown=0, watch=watch))
    figures = {shown: (baseline.best.get(name), trained.best.get(name)) for shown, name in FIGURES.items()}
    figures |= {name: (score, found[1].scores[name]) for name, score in found[0].scores.items()}
    return Comparison(
        trained=trained,
        baseline=baseline,
        figures=figures,
        reasons=found[0].reasons | found[1].reasons,
        images=found[0].images,
    )
