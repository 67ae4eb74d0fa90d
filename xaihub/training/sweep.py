"""Training with several values of one parameter: a table, the value to take, and photos explained before and after."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from xaihub.errors import ExplainerRefused, MetricRefused, ParameterError
from xaihub.files import write_file
from xaihub.hub import Hub
from xaihub.specs import Judged
from xaihub.training.config import Config

if TYPE_CHECKING:
    from xaihub.explainers.explainer import Explainer
    from xaihub.explainers.explanation import Explanation
    from xaihub.metric import Metric
    from xaihub.models.model import Model
    from xaihub.training.data import Split
    from xaihub.training.loop import Watch

__all__ = ["LOSS_TOLERANCE", "POINTS", "Report", "Trial", "choose", "parse", "sweep"]

LOSS_TOLERANCE = 0.02  # share of the first trial's loss
POINTS = 0.005  # share of images that may be lost
_SAFE = re.compile(r"[^\w.=+-]")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One value, trained and judged.

    Attributes:
        value: As it was written.
        card: The card of the trained model.
        loss: The task's loss on images held out, without penalties.
        accuracy: On images held out.
        figures: Means over images by "explainer metric"; None where it was refused.
        reasons: Why, by the same names.
    """

    value: str
    card: str
    loss: float
    accuracy: float
    figures: Mapping[str, float | None]
    reasons: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a sweep found.

    Attributes:
        parameter: The objective's parameter.
        trials: In the order of the values; the first is what the others are compared with.
        chosen: The value to take, by the rule of `choose`.
        images: How many were explained.
        files: The report and the images before and after.
    """

    parameter: str
    trials: Sequence[Trial]
    chosen: str
    images: int
    files: Sequence[Path]


def parse(text: str) -> tuple[str, list[str]]:
    """Split NAME=V1,V2,... into the parameter's name and its values.

    Raises:
        ParameterError: It is not of that form, or names fewer than two different values.
    """
    name, _, rest = text.partition("=")
    values = [value.strip() for value in rest.split(",") if value.strip()]
    if not name.strip() or len(values) < 2 or len(set(values)) < len(values):
        raise ParameterError(
            f"{text!r} does not name a parameter and two or more different values", hint="such as c=0,0.01,0.1"
        )
    return name.strip(), values


def choose(trials: Sequence[Trial]) -> Trial:
    """Return the last trial that costs hardly anything, or the first.

    Values are expected from weak to strong. Hardly anything is a loss at most 2 % above the first trial's, and at most
    half a point of accuracy lost.
    """
    first = trials[0]
    fine = [
        trial
        for trial in trials
        if trial.loss <= first.loss * (1 + LOSS_TOLERANCE) and trial.accuracy >= first.accuracy - POINTS
    ]
    return fine[-1] if fine else first


def sweep(
    hub: Hub,
    config: Config,
    parameter: str,
    values: Sequence[str],
    folder: str | Path,
    *,
    judged: Sequence[Judged] | None = None,
    images: int = 8,
    shown: int = 3,
    device: str = "auto",
    watch: Watch = lambda _text, _done, _total: None,
    tell: Callable[[str], None] = lambda _text: None,
) -> Report:
    """Train once for each value, in a folder of its own, and report on all of them; what is done already is kept.

    Args:
        hub: Models, objectives, explainers and metrics.
        config: The plan that all trials share.
        parameter: The objective's parameter.
        values: Its values; the first, as a rule 0, is what the others are compared with.
        folder: Where the trials' folders and the report are.
        judged: Explainers and metrics; by default those that the objective's record names.
        images: How many of those held out are explained (of those to learn from, where none is held out).
        shown: How many of them are drawn before (by the first value) and after (by the value to take, or the last).
        device: As in `train`.
        watch: Told what is being done, how far, of how much.
        tell: Told one line after each epoch and each trial.

    Raises:
        XaihubError: As `train`, or an explainer or metric does not exist.
    """
    from xaihub.training.run import train

    plans = {}
    for value in values:
        own = {**config.parameters, parameter: value}
        hub.get_objective(config.objective, **own).check_parameters()  # before any work
        plans[value] = msgspec.structs.replace(config, parameters=own)
    chosen = hub.objectives.get(config.objective).judged if judged is None else judged
    makers = [(_explainer(hub, item), _metrics(hub, item)) for item in chosen]
    place, trials, examples = Path(folder), [], {}
    for value, plan in plans.items():
        run = place / _SAFE.sub("_", f"{parameter}={value}")
        tell(f"{parameter}={value}")
        outcome = train(hub, plan, run, resume=run.exists(), device=device, watch=watch, tell=tell)
        model = hub.load_model(str(outcome.card), device=device)
        figures, reasons, examples[value], count = _judge(plan, model, makers, images, shown, watch)
        best = outcome.best
        trials.append(
            Trial(
                value=value,
                card=str(outcome.card),
                # The task's own term, if the objective names it as plain training does.
                loss=best.get("val/cross_entropy", best.get("val_loss", best["train_loss"])),
                accuracy=best.get("val_accuracy", best["train_accuracy"]),
                figures=figures,
                reasons=reasons,
            )
        )
    taken = choose(trials)
    after = taken if taken is not trials[0] else trials[-1]
    files = _draw(place, examples[trials[0].value], examples[after.value])
    report = Report(parameter=parameter, trials=trials, chosen=taken.value, images=count, files=files)
    return _written(place, report)


def _explainer(hub: Hub, item: Judged) -> Explainer:
    return hub.get_explainer(item.explainer, **dict(item.parameters))


def _metrics(hub: Hub, item: Judged) -> list[Metric]:
    return [hub.get_metric(name, **dict(item.metric_parameters.get(name, {}))) for name in item.metrics]


def _judge(
    plan: Config,
    model: Model,
    makers: Sequence[tuple[Explainer, list[Metric]]],
    images: int,
    shown: int,
    watch: Watch,
) -> tuple[dict[str, float | None], dict[str, str], list[list[Explanation]], int]:
    """Return mean figures, reasons of refusals, the first images' explanations, and how many were explained."""
    from xaihub.explainers.target import Target
    from xaihub.images import SourceImage
    from xaihub.metric import Case, Scene

    data = _data(plan, model, watch)
    held = list(data.val or data.train)
    some = [held[round(i * (len(held) - 1) / max(images - 1, 1))] for i in range(min(images, len(held)))]
    found: dict[str, list[float]] = {f"{e.name} {m.name}": [] for e, metrics in makers for m in metrics}
    reasons: dict[str, str] = {}
    examples: list[list[Explanation]] = []
    for number, index in enumerate(some):
        watch("explaining", number, len(some))
        image = data.images.read(index)
        inputs, geometry = model.prepare(image)
        logits = model.predict(inputs[None])
        target = Target(index=data.images.labels[index])  # the true class, so that all trials explain the same one
        scene = Scene(model=model, image=inputs, logits=logits[0], target=target.resolve(logits))
        row: list[Explanation] = []
        for explainer, metrics in makers:
            try:
                explanation = explainer.explain(model, inputs[None], target, seed=plan.seed)[0]
            except ExplainerRefused as error:
                reasons |= {f"{explainer.name} {metric.name}": str(error) for metric in metrics}
                continue
            name = Path(data.images.names[index]).stem
            photo = SourceImage(rgb=image, name=name, source=data.images.names[index], sha256="")
            row.append(explanation.with_image(photo, geometry))
            case = Case(scene=scene, explanation=explanation, explainer=explainer, seed=plan.seed)
            for metric in metrics:
                key = f"{explainer.name} {metric.name}"
                try:
                    found[key].append(metric.measure(case)[0].value)
                except MetricRefused as error:
                    reasons[key] = str(error)
        if row and len(examples) < shown:
            examples.append(row)
    means = {key: statistics.fmean(values) if values else None for key, values in found.items()}
    return means, reasons, examples, len(some)


def _data(plan: Config, model: Model, watch: Watch) -> Split:
    """Return the data as the model was trained on them, whose classes are in the order of the data's."""
    from xaihub.models.adapter import read_classes
    from xaihub.training.setting import dealt
    from xaihub.training.sources import open_images

    classes = None if plan.classes is None else read_classes(plan.classes)
    return dealt(open_images(plan.data, classes=classes), model, plan, watch, known=True)


def _draw(folder: Path, before: Sequence[Sequence[Explanation]], after: Sequence[Sequence[Explanation]]) -> list[Path]:
    from xaihub.explainers.rendering import grid, png_bytes

    files = []
    for number, (first, second) in enumerate(zip(before, after, strict=True), start=1):
        data = png_bytes(grid([first, second]))
        files.append(write_file(folder / f"before-after-{number}.png", data))
    return files


def _written(folder: Path, report: Report) -> Report:
    """Write report.md and report.json, and return the report with these files."""
    record = {
        "parameter": report.parameter,
        "chosen": report.chosen,
        "rule": _rule(),
        "images": report.images,
        "trials": [asdict(trial) for trial in report.trials],
    }
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    page = markdown(report)
    files = [
        write_file(folder / "report.md", page),
        write_file(folder / "report.json", text),
    ]
    return Report(**{**vars(report), "files": [*files, *report.files]})


def _rule() -> str:
    return (
        f"the last value whose loss on images held out is at most {LOSS_TOLERANCE:.0%} above that of the first value,"
        f" and whose accuracy is at most {100 * POINTS:g} points below"
    )


def markdown(report: Report) -> str:
    """Return the report as a page: a row a figure, a column a value, ratios to the first value in brackets."""
    first = report.trials[0]
    names = [f"{report.parameter}={trial.value}" for trial in report.trials]
    lines = [f"# Sweep of {report.parameter}", "", f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines.append(f"| accuracy | {' | '.join(f'{trial.accuracy:.4f}' for trial in report.trials)} |")
    lines.append(f"| loss | {' | '.join(_cell(trial.loss, first.loss) for trial in report.trials)} |")
    for key in first.figures:
        cells = [_cell(trial.figures[key], first.figures[key]) for trial in report.trials]
        lines.append(f"| {key} | {' | '.join(cells)} |")
    lines += ["", f"Means over {report.images} images, in brackets as ratios to {names[0]}.", ""]
    lines.append(f"Take **{report.parameter}={report.chosen}**: {_rule()}.")
    for key, reason in first.reasons.items():
        lines.append(f"\n{key}: {reason}.")
    lines += [f"\n![before and after]({file.name})" for file in report.files if file.suffix == ".png"]
    return "\n".join(lines) + "\n"


def _cell(value: float | None, first: float | None) -> str:
    if value is None:
        return "-"
    ratio = f" ({value / first:.2f})" if first and math.isfinite(value / first) else ""
    return f"{value:.4g}{ratio}"
