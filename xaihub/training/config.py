"""What a run is asked to do, as it stands in its config.yaml."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from xaihub.errors import ParameterError

__all__ = ["Config", "checked"]

Positive = Annotated[int, Meta(ge=1)]

# Both take rate times decay off the weights in a step, but SGD needs larger rates, and its momentum adds ten such steps
# up: with AdamW's decay it forgets what was pretrained.
DECAY = {"adamw": 0.05, "sgd": 5e-4}


class Config(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The plan of one training run.

    Attributes:
        data: A folder of class folders, a CSV file, "hf:NAME", "digits" or "evidence".
        model: What is trained, as `Hub.load_model` takes it.
        checkpoint: A weights file that replaces the model's own.
        scratch: Start from random weights.
        size: A side of the input in pixels, instead of the model's own.
        objective: The registered name of what is minimised.
        parameters: The objective's parameters.
        classes: A file of class names, one a line, that gives label indices their names.
        val: The share of each class that is held out, where the data have no split of their own.
        epochs: Passes over the training images.
        batch_size: Rows that go through the network at once, over all processes.
        accumulate: Batches an optimiser step.
        lr: The highest learning rate.
        head_lr_scale: Factor on it for the classifier.
        weight_decay: Not applied to norms and biases; by default what suits the optimiser.
        optimizer: An optimiser of timm.
        schedule: How the learning rate falls.
        warmup: The share of steps in which it rises first.
        clip: The largest norm of the gradient; 0 leaves it as it is.
        ema: The decay of averaged weights, or None.
        freeze: Train only what the objective calls trainable (the classifier, as a rule).
        freeze_norm: Keep the statistics of batch norms.
        augment: Random crops and flips; by default unless the backbone is frozen.
        min_crop: The smallest share of an image's area that a random crop keeps.
        monitor: What the best epoch is judged by, on the images held out.
        patience: Epochs without improvement after which training stops, or None.
        keep: The epoch whose weights are the result.
        seed: Fixes every random choice.
        precision: Of forward passes.
        workers: Processes that read images.
        skip_unreadable: Leave out images that cannot be read.
        save_every: Seconds between checkpoints within an epoch.
        logger: Where figures go besides log.csv.
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
    """Return a plan of the given values.

    Raises:
        ParameterError: A name is unknown, or a value is of the wrong type or range.
    """
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ParameterError(f"{name!r} cannot be {value}: expected a finite number")
    if values.get("scratch") and values.get("checkpoint"):
        raise ParameterError("scratch and checkpoint exclude each other", hint="drop one of them")
    if values.get("patience") and values.get("keep") == "last":
        raise ParameterError("patience waits for a better epoch, and keep=last keeps none", hint="drop one of them")
    try:
        return msgspec.convert(values, type=Config)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$.")
        name = where.rstrip("`")
        shown = f"{name!r} cannot be {values.get(name)!r}: " if name in values else ""
        raise ParameterError(f"{shown}{message[0].lower()}{message[1:]}") from error
