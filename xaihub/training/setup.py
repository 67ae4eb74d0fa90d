"""Set-up of a run: data, model, objective and trainer, built from a plan and checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor

from xaihub.errors import MissingExtra, ModelError, ParameterError
from xaihub.hub import Hub, pick_device
from xaihub.models.adapter import read_classes
from xaihub.models.model import Model
from xaihub.models.weights import fill
from xaihub.objective import Objective
from xaihub.params import convert
from xaihub.training.config import Config
from xaihub.training.data.features import cache_features
from xaihub.training.data.images import LabelledImages, Split, check_classes, ordered, readable, split
from xaihub.training.data.loaders import ImageLoader, Loader, inverse_frequencies
from xaihub.training.data.sources import open_images
from xaihub.training.head import find_head, with_classes
from xaihub.training.loop.trainer import Trainer, Watch
from xaihub.training.seeds import seed_everything

# These may differ when a run is resumed: they do not change any result, or extend the run.
_FREE = ("workers", "save_every", "logger", "epochs")
_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


@dataclass(kw_only=True)
class Setup:
    """The parts of a run.

    Attributes:
        model: The model before the objective wrapped it, for the classes of the data.
        images: Loads the training and validation images.
        trainer: Takes the steps.
    """

    model: Model
    images: ImageLoader
    trainer: Trainer

    @property
    def data(self) -> Split:
        """Training and validation images."""
        return self.images.data

    def held_out(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and labels of the validation images, or of the training images if none are held out."""
        for batch in self.images.validation() if self.data.val else self.images.plain(self.data.train):
            yield batch.inputs, batch.labels


@contextmanager
def accelerating(config: Config, device: str, folder: Path | None = None) -> Iterator[Accelerator]:
    """Yield Accelerate's object for the device and the precision, and reset its global state afterwards.

    With a `folder`, the plan's tracker is made, and writes there if it writes files.

    Raises:
        MissingExtra: Accelerate finds no package for the tracker.
        ModelError: There is no such device.
        ParameterError: The device does not support the precision.
    """
    tracker = config.logger if folder is not None and config.logger != "csv" else None
    if tracker is not None and tracker not in {str(item) for item in get_available_trackers()}:
        package = "'xaihub[tensorboard]'" if tracker == "tensorboard" else tracker
        raise MissingExtra(f"logger={tracker} needs {tracker!r}, which is not installed", hint=f"pip install {package}")
    chosen = pick_device(device)
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)
    _reset()
    try:
        try:
            accelerator = Accelerator(
                mixed_precision=_PRECISION[config.precision],
                cpu=chosen.type == "cpu",
                log_with=tracker,
                project_dir=folder,
                kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
            )
        except ValueError as error:  # how Accelerate reports an unsupported precision
            raise ParameterError(f"--precision {config.precision} is not supported on {chosen}: {error}") from error
        yield accelerator
        accelerator.end_training()
    finally:
        _reset()


def _reset() -> None:
    """Let the next run choose its own precision: Accelerate keeps the first choice for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def set_up(hub: Hub, config: Config, accelerator: Accelerator, watch: Watch) -> Setup:
    """Check data and model, and build everything that training needs.

    A network that the objective has changed before is trained further, for its own classes; parameters that the plan
    does not give are those on its card.

    Raises:
        XaihubError: The data, the model, the objective or a parameter cannot be used.
    """
    objective = hub.get_objective(config.objective, **config.parameters)
    if config.mixes and not objective.soft_labels:
        raise ParameterError(
            f"the objective {config.objective!r} needs one class per image, so mixup and cutmix do not apply",
            hint="drop them, or use randaugment",
        )
    if config.class_weights and not objective.weighs_classes:
        raise ParameterError(
            f"the objective {config.objective!r} does not weigh classes, so class_weights does not apply",
            hint="use balance=true, which draws all classes equally often",
        )
    labelled = labelled_images(config)
    check_classes(labelled)
    seed_everything("weights", config.seed)
    model = hub.load_model(
        config.model,
        device=str(accelerator.device),
        checkpoint=config.checkpoint,
        scratch=config.scratch,
        size=config.size,
    )
    if model.input_size[0] not in (1, 3):
        raise ParameterError(
            f"training reads RGB and grey images, but {config.model!r} takes {model.input_size[0]} channels"
        )
    learned = None
    if model.card.objective:
        learned = model.module.state_dict()
        objective, model = _unwrapped(hub, config, model)
    data = prepared(labelled, model, config, watch)
    classes = data.images.classes
    if config.patience is not None and not data.val:
        raise ParameterError("patience needs validation images", hint="hold some out with --val, or add a folder val/")
    if learned is not None and tuple(classes) != model.classes:
        raise ModelError(
            f"model {config.model!r} was changed for its own classes: {', '.join(model.classes)}",
            hint="give data with the same classes, or start from the original model",
        )
    model = with_classes(model, classes, seed=config.seed)
    if config.class_weights:
        objective.class_weights = inverse_frequencies([data.images.labels[index] for index in data.train], len(classes))
    images = ImageLoader(
        data,
        model.preprocessing,
        config,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        pin=accelerator.device.type == "cuda",
    )
    if config.randaugment is not None:
        images.augmentation.distort  # noqa: B018 - refuses a description that timm cannot read
    try:
        head = find_head(model)
    except ModelError:
        if config.freeze:
            raise
        head = None
    seed_everything("wrap", config.seed)
    network = objective.wrap(model).to(accelerator.device)
    if learned is not None:
        fill(network, learned, what=f"the weights of {config.model!r}")
    part = objective.trainable(network, head) if config.freeze and head is not None else None
    loader: Loader = images
    if part is not None and part is not network and objective.on_features and not config.varies:
        loader = cache_features(network, part, images, device=accelerator.device, watch=watch) or images
    trainer = Trainer(
        objective,
        network,
        loader=loader,
        config=config,
        accelerator=accelerator,
        classes=len(classes),
        head=head,
        part=part,
        loss_network=None if loader is images else part,
        identity=_identity(config, data),
    )
    return Setup(model=model, images=images, trainer=trainer)


def _unwrapped(hub: Hub, config: Config, changed: Model) -> tuple[Objective, Model]:
    """Return the objective that changed a network, updated by the plan's parameters, and the model without it."""
    card = changed.card
    if config.objective != card.objective:
        raise ModelError(
            f"model {config.model!r} was already changed by the objective {card.objective!r}",
            hint=f"use --objective {card.objective}, or start from the original model",
        )
    given = convert(hub.objectives.get(card.objective).load(), config.parameters, who=card.objective)
    objective = hub.get_objective(card.objective, **{**card.objective_options, **given})
    plain = hub.load_model(config.model, device=str(changed.device), scratch=True, size=config.size)
    plain.classes = changed.classes
    return objective, plain.around(plain.module, card=replace(card, objective="", objective_options={}))


def labelled_images(config: Config) -> LabelledImages:
    """Find the plan's images without reading them; see `open_images`."""
    return open_images(config.data, classes=None if config.classes is None else read_classes(config.classes))


def prepared(images: LabelledImages, model: Model, config: Config, watch: Watch, *, checked: bool = False) -> Split:
    """Return the images as training uses them: in the order of the model's classes, readable, and split.

    If `checked`, an earlier run has read all images, so they are only read again to skip those that are unreadable.

    Raises:
        InputError: An image cannot be read, or a class has too few images.
    """
    if sorted(model.classes) == sorted(images.classes) and len({*model.classes}) == len(model.classes):
        images = ordered(images, model.classes)  # the classifier is kept, and so is the order of its rows
    if config.skip_unreadable or not checked:
        images = readable(images, skip=config.skip_unreadable, watch=watch, check=model.preprocessing.check)
    check_classes(images)
    return split(images, fraction=config.val, seed=config.seed)


def _identity(config: Config, data: Split) -> str:
    """Return plan and data as text; resuming with the same identity continues the same run."""
    plan = {name: value for name, value in msgspec.to_builtins(config).items() if name not in _FREE}
    return msgspec.json.encode([plan, data.digest], order="sorted").decode()
