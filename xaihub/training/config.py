"""The plan of a training run, as stored in its config.yaml."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from xaihub.errors import ParameterError

__all__ = ["Config", "checked"]

Positive = Annotated[int, Meta(ge=1)]

# A step reduces the weights by rate times decay for both, but SGD needs larger rates, and its momentum adds up ten
# such steps: with AdamW's decay it loses the pretrained weights.
DECAY = {"adamw": 0.05, "sgd": 5e-4}


class Config(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The plan of one training run.

    Attributes:
        data: A folder of class folders, a CSV file, "hf:NAME", "digits" or "evidence".
        model: The model to train, as for `Hub.load_model`.
        checkpoint: A weights file to start from instead of the model's own weights.
        scratch: Start from random weights.
        size: Input side length in pixels; None for the model's own.
        objective: Registered name of the training objective.
        parameters: The objective's parameters.
        classes: A file of class names, one per line, in the order of the label indices.
        val: Fraction of each class that is held out, if the data have no split of their own.
        epochs: Passes over the training images.
        batch_size: Images per forward pass, over all processes.
        accumulate: Batches accumulated per optimizer step.
        lr: Maximum learning rate.
        head_lr_scale: Learning-rate multiplier for the classifier head.
        weight_decay: Weight decay, not applied to norms and biases; None for the optimizer's default.
        optimizer: Optimizer (timm's implementation).
        schedule: Learning-rate schedule.
        warmup: Fraction of steps used for learning-rate warm-up.
        clip: Maximum gradient norm; 0 disables clipping.
        ema: Decay of the exponential moving average of the weights, or None.
        freeze: Train only the part that the objective declares trainable (usually the classifier).
        freeze_norm: Keep batch-norm statistics fixed.
        augment: Random crops and flips; None for all runs without `freeze`.
        min_crop: Minimum fraction of the image area that a random crop keeps.
        monitor: Validation metric that selects the best epoch.
        patience: Stop after this many epochs without improvement, or None.
        keep: The epoch whose weights are saved.
        seed: Seed of all random choices.
        precision: Numerical precision of the forward passes.
        workers: Number of processes that read images.
        skip_unreadable: Skip images that cannot be read.
        save_every: Seconds between checkpoints within an epoch.
        logger: Extra logger besides log.csv ("csv" for none).
    """

    data: str
    model: str = "efficientnet_lite0"
    checkpoint: str | None = None
    scratch: bool = False
    size: Positive | None = None
    objective: str = "cross_entropy"
    parameters: dict[str, Any] = {}
    classes: str | None = None
    val: Annotated[float, Meta(ge=0, lt=1)] = 0.2
    epochs: Positive = 5
    batch_size: Positive = 32
    accumulate: Positive = 1
    lr: Annotated[float, Meta(gt=0)] = 1e-4
    head_lr_scale: Annotated[float, Meta(gt=0)] = 10.0
    weight_decay: Annotated[float, Meta(ge=0)] | None = None
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup: Annotated[float, Meta(ge=0, lt=1)] = 0.05
    clip: Annotated[float, Meta(ge=0)] = 1.0
    ema: Annotated[float, Meta(gt=0, lt=1)] | None = None
    freeze: bool = False
    freeze_norm: bool = False
    augment: bool | None = None
    min_crop: Annotated[float, Meta(gt=0, le=1)] = 0.5
    monitor: Literal["loss", "accuracy"] = "loss"
    patience: Positive | None = None
    keep: Literal["best", "last"] = "best"
    seed: Annotated[int, Meta(ge=0)] = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    workers: Annotated[int, Meta(ge=0)] = 0
    skip_unreadable: bool = False
    save_every: Annotated[float, Meta(ge=0)] = 60.0
    logger: Literal["csv", "tensorboard"] = "csv"

    @property
    def decay(self) -> float:
        """The weight decay that is used."""
        return DECAY[self.optimizer] if self.weight_decay is None else self.weight_decay

    @property
    def augments(self) -> bool:
        """Whether training images are cropped and flipped at random."""
        return not self.freeze if self.augment is None else self.augment


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
        raise ParameterError("--patience cannot be combined with --keep last", hint="drop one of them")
    try:
        return msgspec.convert(values, type=Config)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$.")
        name = where.rstrip("`")
        shown = f"{name!r} cannot be {values.get(name)!r}: " if name in values else ""
        raise ParameterError(f"{shown}{message[0].lower()}{message[1:]}") from error
