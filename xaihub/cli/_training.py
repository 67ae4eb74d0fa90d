"""The options of a training plan, shared by `xaihub train` and `xaihub sweep`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import click
import msgspec

from xaihub.cli._options import Opt, option
from xaihub.training.config import Config, checked

__all__ = ["PlanCommand", "plan_options", "read_plan"]

F = TypeVar("F", bound=Callable[..., Any])

# Types, defaults and choices are those of `Config`.
TOPICS = {
    "Model and data": {
        "model": "Model to train: a zoo model, a model card (.yaml), or a timm or torchvision name.",
        "checkpoint": "Weights to start from (.safetensors, .pt, .pth).",
        "scratch": "Start from random weights.",
        "size": "Input side length in pixels; default: the model's own.",
        "classes": "File with class names in the order of the labels, one per line.",
        "val": "Fraction of each class to hold out for validation, if the data set has no split.",
        "augment": "Random crops and flips; default: on, unless --freeze.",
        "min_crop": "Minimum fraction of the image area that a random crop keeps.",
        "skip_unreadable": "Skip images that cannot be read.",
        "workers": "Processes that load images.",
    },
    "Optimization": {
        "objective": "Training objective (see 'xaihub list objectives').",
        "epochs": "Passes over the training images.",
        "batch_size": "Images per batch, summed over all processes.",
        "accumulate": "Batches accumulated per optimizer step.",
        "lr": "Peak learning rate.",
        "head_lr_scale": "Learning-rate multiplier for the classifier head.",
        "weight_decay": "Weight decay, not applied to norms and biases; default: 0.05, or 0.0005 for sgd.",
        "optimizer": "Optimizer (timm's implementation).",
        "schedule": "Learning-rate schedule.",
        "warmup": "Fraction of steps used for learning-rate warm-up.",
        "clip": "Maximum gradient norm; 0 turns clipping off.",
        "ema": "Keep an exponential moving average of the weights with this decay (such as 0.99); it is the result.",
        "freeze": "Train only the classifier head; backbone features are computed once if possible.",
        "freeze_norm": "Keep the running statistics of batch norms fixed.",
        "precision": "Numerical precision of the forward passes.",
        "seed": "Seed of every random choice.",
    },
    "Selection and logs": {
        "monitor": "Validation figure that selects the best epoch.",
        "patience": "Stop after N epochs without improvement.",
        "keep": "Epoch whose weights are the result.",
        "save_every": "Seconds between checkpoints within an epoch.",
        "logger": "Logger in addition to log.csv ('tensorboard' needs xaihub[tensorboard]).",
    },
}
METAVARS = {"checkpoint": "FILE", "classes": "FILE", "ema": "DECAY", "patience": "N"}


class PlanCommand(click.Command):
    """A command whose help lists the options of the plan by topic."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section per topic, then the remaining options."""
        options = [item for item in self.get_params(ctx) if isinstance(item, click.Option)]
        shown = {item.name: item.get_help_record(ctx) for item in options}
        topics = {title: [shown.pop(name) for name in names] for title, names in TOPICS.items()}
        for title, records in {"Options": list(shown.values()), **topics}.items():
            with formatter.section(title):
                formatter.write_dl([record for record in records if record])


def plan_options(function: F) -> F:
    """Add one option per field of `Config` that has a help text in `TOPICS`."""
    hints, defaults = get_type_hints(Config), {item.name: item.default for item in msgspec.structs.fields(Config)}
    for name, text in reversed([pair for names in TOPICS.values() for pair in names.items()]):
        given = Opt(text, *(("-m", "--model") if name == "model" else ()), metavar=METAVARS.get(name))
        function = option(name, hints[name], defaults[name], given)(function)
    return function


def read_plan(data: str | None, values: Mapping[str, Any], parameters: Mapping[str, str]) -> Config:
    """Return the plan; paths become absolute, because a run may be resumed from another folder.

    Raises:
        UsageError: No data are given.
        ParameterError: A value is out of range, or two options exclude each other.
    """
    if not data:
        raise click.UsageError("no data to train on; name a folder, a CSV file, hf:NAME, digits or evidence")
    plan = {**values, "data": data, "parameters": dict(parameters)}
    for name in ("data", "checkpoint", "classes", "model"):
        path = plan[name]
        if path and (name != "model" or path.lower().endswith((".yaml", ".yml"))) and Path(path).exists():
            plan[name] = str(Path(path).resolve())
    return checked(plan)
