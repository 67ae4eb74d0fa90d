"""The plan of a training run, as stored in its config.yaml."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from xaihub.errors import ParameterError, did_you_mean
from xaihub.params import convert
from xaihub.records import YamlFile

Positive = Annotated[int, Meta(ge=1)]

# A step reduces the weights by rate times decay for both, but SGD needs larger rates, and its momentum adds up ten
# such steps: with AdamW's decay it loses the pretrained weights.
DECAY = {"adamw": 0.05, "sgd": 5e-4}


class Config(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The plan of one training run: the keys of its config.yaml, of `--config` and of `--set`."""

    data: Annotated[str, Meta(description="What to train on; see 'xaihub train --help'.")]
    model: Annotated[str, Meta(description="Zoo model, model card (.yaml), or timm or torchvision name.")] = (
        "efficientnet_lite0"
    )
    checkpoint: Annotated[str | None, Meta(description="Weights to start from (.safetensors, .pt, .pth).")] = None
    scratch: Annotated[bool, Meta(description="Start from random weights.")] = False
    size: Annotated[Positive | None, Meta(description="Input side length in pixels; default: the model's own.")] = None
    objective: Annotated[str, Meta(description="Training objective (see 'xaihub list objectives').")] = "cross_entropy"
    parameters: Annotated[dict[str, Any], Meta(description="Parameters of the objective, as -p sets them.")] = {}
    classes: Annotated[str | None, Meta(description="Class names in the order of the labels, one per line.")] = None
    val: Annotated[
        float, Meta(ge=0, lt=1, description="Fraction of each class to hold out, if the data have no split.")
    ] = 0.2
    epochs: Annotated[int, Meta(ge=1, description="Passes over the training images.")] = 5
    batch_size: Annotated[int, Meta(ge=1, description="Images per batch, summed over all processes.")] = 32
    accumulate: Annotated[int, Meta(ge=1, description="Batches accumulated per optimizer step.")] = 1
    lr: Annotated[float, Meta(gt=0, description="Peak learning rate.")] = 1e-4
    head_lr_scale: Annotated[float, Meta(gt=0, description="Learning-rate multiplier for the classifier head.")] = 10.0
    weight_decay: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="Weight decay, not applied to norms and biases; default: 0.05, or 0.0005 for sgd."),
    ] = None
    optimizer: Annotated[Literal["adamw", "sgd"], Meta(description="Optimizer (timm's implementation).")] = "adamw"
    schedule: Annotated[Literal["cosine", "step", "constant"], Meta(description="Learning-rate schedule.")] = "cosine"
    warmup: Annotated[float, Meta(ge=0, lt=1, description="Fraction of steps used for learning-rate warm-up.")] = 0.05
    clip: Annotated[float, Meta(ge=0, description="Maximum gradient norm; 0 disables clipping.")] = 1.0
    ema: Annotated[
        Annotated[float, Meta(gt=0, lt=1)] | None,
        Meta(description="Average the weights with this decay, such as 0.99; the average is the result."),
    ] = None
    freeze: Annotated[
        bool, Meta(description="Train only the classifier head; backbone features are computed once if possible.")
    ] = False
    freeze_norm: Annotated[bool, Meta(description="Keep the statistics of batch norms fixed.")] = False
    layer_decay: Annotated[
        Annotated[float, Meta(gt=0, lt=1)] | None,
        Meta(description="Learning-rate multiplier per layer, counted from the output (timm's layers), such as 0.75."),
    ] = None
    balance: Annotated[
        bool, Meta(description="Draw training images with replacement, so that all classes are equally frequent.")
    ] = False
    class_weights: Annotated[
        bool, Meta(description="Weigh the cross-entropy of each class by the inverse of its frequency.")
    ] = False
    augment: Annotated[bool | None, Meta(description="Random crops and flips; default: on, unless --freeze.")] = None
    min_crop: Annotated[
        float, Meta(gt=0, le=1, description="Minimum fraction of the area that a random crop keeps.")
    ] = 0.5
    randaugment: Annotated[
        str | None, Meta(description="RandAugment in timm's notation, such as rand-m9-mstd0.5-inc1.")
    ] = None
    mixup: Annotated[float, Meta(ge=0, description="Mixup alpha, such as 0.2; 0 disables it.")] = 0.0
    cutmix: Annotated[float, Meta(ge=0, description="CutMix alpha, such as 1; with mixup, each batch uses one.")] = 0.0
    monitor: Annotated[
        Literal["loss", "accuracy"], Meta(description="Validation metric that selects the best epoch.")
    ] = "loss"
    patience: Annotated[Positive | None, Meta(description="Stop after N epochs without improvement.")] = None
    keep: Annotated[Literal["best", "last"], Meta(description="Epoch whose weights are the result.")] = "best"
    seed: Annotated[int, Meta(ge=0, description="Seed of every random choice.")] = 0
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"], Meta(description="Numerical precision of the forward passes.")
    ] = "fp32"
    workers: Annotated[int, Meta(ge=0, description="Processes that load images.")] = 0
    skip_unreadable: Annotated[bool, Meta(description="Skip images that cannot be read.")] = False
    save_every: Annotated[float, Meta(ge=0, description="Seconds between checkpoints within an epoch.")] = 60.0
    logger: Annotated[
        Literal["csv", "tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab", "trackio"],
        Meta(description="Tracker in addition to log.csv, by Accelerate; the package of that name must be installed."),
    ] = "csv"

    @property
    def decay(self) -> float:
        """The weight decay that is used."""
        return DECAY[self.optimizer] if self.weight_decay is None else self.weight_decay

    @property
    def augments(self) -> bool:
        """Whether training images are cropped and flipped at random."""
        return not self.freeze if self.augment is None else self.augment

    @property
    def mixes(self) -> bool:
        """Whether training images are mixed in pairs, so that labels become class probabilities."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def varies(self) -> bool:
        """Whether a training image looks different in each epoch, so that its features cannot be kept."""
        return self.augments or self.mixes or self.randaugment is not None


def read_file(path: str | Path) -> dict[str, Any]:
    """Return the values that a YAML file sets, such as the config.yaml of a run; all are checked, none is required.

    Raises:
        ParameterError: The file cannot be read, a name is unknown, or a value has the wrong type or range.
    """
    file = YamlFile(path, what="plan", error=ParameterError)
    values = {} if file.data is None else file.data
    if not isinstance(values, dict):
        raise file.complaint(f"expected names with values, not {type(values).__name__}")
    for name, value in values.items():
        if name not in Config.__struct_fields__:
            raise file.complaint(
                f"there is no setting {name!r}", str(name), hint=did_you_mean(str(name), Config.__struct_fields__)
            )
        try:
            settings({name: value})
        except ParameterError as error:
            raise file.complaint(error.message, str(name), hint=error.hint) from error
    return settings(values)


def settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values (texts of a command line, or objects) as the types of the plan.

    Raises:
        ParameterError: A name is unknown, or a value has the wrong type or range.
    """
    return convert(Config, values, who="the plan")


def checked(values: dict[str, Any]) -> Config:
    """Return the plan of the given values, for instance of command-line options.

    Raises:
        ParameterError: A name is unknown, a value has the wrong type or range, or two values exclude each other.
    """
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ParameterError(f"{name!r} cannot be {value}: expected a finite number")
    if values.get("scratch") and values.get("checkpoint"):
        raise ParameterError("--scratch cannot be combined with --checkpoint", hint="drop one of them")
    if values.get("patience") and values.get("keep") == "last":
        raise ParameterError("patience cannot be combined with keep=last", hint="drop one of them")
    if values.get("freeze") and values.get("layer_decay"):
        raise ParameterError("--freeze cannot be combined with layer_decay", hint="drop one of them")
    if values.get("balance") and values.get("class_weights"):
        raise ParameterError(
            "balance=true cannot be combined with class_weights=true: rare classes would count twice",
            hint="drop one of them",
        )
    try:
        return msgspec.convert(values, type=Config)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$.")
        name = where.rstrip("`")
        shown = f"{name!r} cannot be {values.get(name)!r}: " if name in values else ""
        raise ParameterError(f"{shown}{message[0].lower()}{message[1:]}") from error
