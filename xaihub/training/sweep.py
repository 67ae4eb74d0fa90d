"""Train once per value of a parameter: a table, a recommended value, and images explained before and after."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from xaihub.errors import ParameterError
from xaihub.files import write_file
from xaihub.hub import Hub
from xaihub.specs import Judged
from xaihub.training.config import Config

if TYPE_CHECKING:
    from xaihub.training.loop.trainer import Watch


LOSS_TOLERANCE = 0.02  # fraction of the first trial's loss
POINTS = 0.005  # tolerated drop in accuracy, as a fraction of images
RULE = (
    f"the last value whose validation loss is at most {LOSS_TOLERANCE:.0%} above that of the first value,"
    f" and whose accuracy is at most {100 * POINTS:g} points below"
)
_UNSAFE = re.compile(r"[^\w.=+-]")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One value, trained and evaluated.

    Attributes:
        value: The value as given.
        card: The card of the trained model.
        loss: The task's validation loss, without penalties.
        accuracy: Validation accuracy.
        scores: Mean scores by "explainer metric"; None if refused.
        reasons: Why a score was refused, by the same names.
    """

    value: str
    card: str
    loss: float
    accuracy: float
    scores: Mapping[str, float | None]
    reasons: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of a sweep.

    Attributes:
        parameter: The objective's parameter.
        trials: In the order of the values; the first is the reference of the ratios.
        chosen: The recommended value; see `choose`.
        images: Number of explained images.
        files: The report and the figures before and after.
    """

    parameter: str
    trials: Sequence[Trial]
    chosen: str
    images: int
    files: Sequence[Path]


def parse(text: str) -> tuple[str, list[str]]:
    """Split NAME=V1,V2,... into the parameter's name and its values.

    Raises:
        ParameterError: The text has another form, or names fewer than two different values.
    """
    name, _, rest = text.partition("=")
    values = [value.strip() for value in rest.split(",") if value.strip()]
    if not name.strip() or len(values) < 2 or len(set(values)) < len(values):
        raise ParameterError(
            f"{text!r} does not name a parameter and two or more different values", hint="such as c=0,0.01,0.1"
        )
    return name.strip(), values


def choose(trials: Sequence[Trial]) -> Trial:
    """Return the last trial that costs almost nothing in loss and accuracy (see `RULE`), or the first trial.

    Values are expected from weak to strong.
    """
    first = trials[0]
    cheap = [
        trial
        for trial in trials
        if trial.loss <= first.loss * (1 + LOSS_TOLERANCE) and trial.accuracy >= first.accuracy - POINTS
    ]
    return cheap[-1] if cheap else first


def sweep(
    hub: Hub,
    config: Config,
    parameter: str,
    values: Sequence[str],
    folder: str | Path,
    *,
    judged: Sequence[Judged],
    images: int = 8,
    shown: int = 3,
    device: str = "auto",
    watch: Watch = lambda _text, _done, _total: None,
    tell: Callable[[str], None] = lambda _text: None,
) -> Report:
    """Train once per value, each in its own subfolder, and report on all of them; finished runs are kept.

    Args:
        hub: Models, objectives, explainers and metrics.
        config: The plan that all trials share.
        parameter: The objective's parameter.
        values: Its values; the first, usually 0, is the reference.
        folder: Output folder for the trials and the report.
        judged: Explainers and metrics to report.
        images: Number of validation images to explain (training images if none are held out).
        shown: How many of them to draw before (first value) and after (recommended value, or the last).
        device: As for `train`.
        watch: Receives the current activity, completed steps and total steps.
        tell: Receives one line per epoch and per trial.

    Raises:
        XaihubError: As for `train`, or an explainer or metric does not exist.
    """
    from xaihub.explainers.rendering import grid, png_bytes
    from xaihub.training.judging import judge, make_judges
    from xaihub.training.run import train

    plans = {}
    for value in values:
        own = {**config.parameters, parameter: value}
        hub.get_objective(config.objective, **own).check_parameters()  # before any work
        plans[value] = msgspec.structs.replace(config, parameters=own)
    judges = make_judges(hub, judged)
    folder, trials, examples, count = Path(folder), [], {}, 0
    for value, plan in plans.items():
        run = folder / _UNSAFE.sub("_", f"{parameter}={value}")
        tell(f"{parameter}={value}")
        outcome = train(hub, plan, run, resume=run.exists(), device=device, watch=watch, tell=tell)
        model, best = hub.load_model(str(outcome.card), device=device), outcome.best
        found = judge(plan, model, judges, images=images, shown=shown, watch=watch)
        examples[value], count = found.examples, found.images
        trials.append(
            Trial(
                value=value,
                card=str(outcome.card),
                # The task's own term, if the objective names it as cross_entropy does.
                loss=best.get("val/cross_entropy", best.get("val_loss", best["train_loss"])),
                accuracy=best.get("val_accuracy", best["train_accuracy"]),
                scores=found.scores,
                reasons=found.reasons,
            )
        )
    taken = choose(trials)
    after = taken if taken is not trials[0] else trials[-1]
    pairs = zip(examples[trials[0].value], examples[after.value], strict=True)
    figures = [
        write_file(folder / f"before-after-{number}.png", png_bytes(grid(pair))) for number, pair in enumerate(pairs, 1)
    ]
    report = Report(parameter=parameter, trials=trials, chosen=taken.value, images=count, files=figures)
    record = {**asdict(report), "rule": RULE}
    del record["files"]
    files = [
        write_file(folder / "report.md", markdown(report)),
        write_file(folder / "report.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n"),
    ]
    return replace(report, files=[*files, *figures])


def markdown(report: Report) -> str:
    """Return the report as a page: one row per metric, one column per value, ratios to the first value in brackets."""
    first = report.trials[0]
    names = [f"{report.parameter}={trial.value}" for trial in report.trials]
    lines = [f"# Sweep of {report.parameter}", "", f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines.append(f"| accuracy | {' | '.join(f'{trial.accuracy:.4f}' for trial in report.trials)} |")
    lines.append(f"| loss | {' | '.join(_cell(trial.loss, first.loss) for trial in report.trials)} |")
    for key, score in first.scores.items():
        lines.append(f"| {key} | {' | '.join(_cell(trial.scores[key], score) for trial in report.trials)} |")
    lines += ["", f"Means over {report.images} images; in brackets, ratios to {names[0]}.", ""]
    lines.append(f"Recommended: **{report.parameter}={report.chosen}**, {RULE}.")
    lines += [f"\n{key}: {reason}." for key, reason in first.reasons.items()]
    lines += [f"\n![before and after]({file.name})" for file in report.files if file.suffix == ".png"]
    return "\n".join(lines) + "\n"


def _cell(value: float | None, first: float | None) -> str:
    if value is None:
        return "-"
    ratio = f" ({value / first:.2f})" if first and math.isfinite(value / first) else ""
    return f"{value:.4g}{ratio}"
