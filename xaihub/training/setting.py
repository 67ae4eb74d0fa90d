"""What running and estimating share: data, model, objective and trainer, made from a plan and checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import msgspec
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from xaihub.errors import ModelError, ParameterError
from xaihub.hub import Hub, pick_device
from xaihub.models.adapter import read_classes
from xaihub.models.model import Model
from xaihub.models.weights import fill
from xaihub.objective import Objective
from xaihub.params import convert
from xaihub.training.config import Config
from xaihub.training.data import LabelledImages, Split, check_classes, ordered, readable, split
from xaihub.training.draws import seed_everything
from xaihub.training.features import cache_features
from xaihub.training.feed import Feed, ImageFeed
from xaihub.training.head import find_head, with_classes
from xaihub.training.loop import Trainer, Watch
from xaihub.training.sources import open_images

__all__ = ["Setting", "accelerating", "dealt", "set_up"]

# What may differ when a run goes on: it changes nothing that is computed.
_FREE = ("workers", "save_every", "logger")
_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


@dataclass(kw_only=True)
class Setting:
    """Everything that a run is made of.

    Attributes:
        accelerator: Of Accelerate: device, precision, processes.
        model: Before it was wrapped, for the classes of the data.
        objective: What is minimised.
        data: What is learned from and what is held out.
        images: Reads the images.
        trainer: Trains.
    """

    accelerator: Accelerator
    model: Model
    objective: Objective
    data: Split
    images: ImageFeed
    trainer: Trainer

    def held_out(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what is held out; where nothing is, the images to learn from, without augmentation."""
        for batch in self.images.validation() if self.data.val else self.images.plain():
            yield batch.inputs, batch.labels


@contextmanager
def accelerating(config: Config, device: str) -> Iterator[Accelerator]:
    """Give Accelerate's object for the device and the precision, and forget its global state afterwards.

    Raises:
        ModelError: There is no such device.
        ParameterError: The device lacks the precision.
    """
    chosen = pick_device(device)
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)
    _forget()
    try:
        try:
            accelerator = Accelerator(
                mixed_precision=_PRECISION[config.precision],
                cpu=chosen.type == "cpu",
                kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
            )
        except ValueError as error:  # Accelerate's word for a precision that the device lacks
            raise ParameterError(f"--precision {config.precision} does not work on {chosen}: {error}") from error
        yield accelerator
        accelerator.end_training()
    finally:
        _forget()


def _forget() -> None:
    """Let the next run choose its own precision: Accelerate keeps the first choice for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def set_up(hub: Hub, config: Config, accelerator: Accelerator, watch: Watch) -> Setting:
    """Check data and model, and make everything that training needs.

    A network that the objective has changed already is trained on, for its own classes; parameters that are not asked
    for are those on its card.

    Raises:
        XaihubError: The data, the model, the objective or a parameter cannot be used.
    """
    objective = hub.get_objective(config.objective, **config.parameters)
    labelled = open_images(config.data, classes=None if config.classes is None else read_classes(config.classes))
    check_classes(labelled)
    seed_everything("weights", config.seed)
    model = hub.load_model(
        config.model,
        device=str(accelerator.device),
        checkpoint=config.checkpoint,
        scratch=config.scratch,
        size=config.size,
    )
    learned = None
    if model.card.objective:
        learned = model.module.state_dict()
        objective, model = _trained_before(hub, config, model)
    data = dealt(labelled, model, config, watch)
    labelled = data.images
    if config.patience is not None and not data.val:
        raise ParameterError("patience needs images held out", hint="hold some out: --val, or a folder val/")
    if learned is not None and tuple(labelled.classes) != model.classes:
        raise ModelError(
            f"model {config.model!r} was changed for its own classes: {', '.join(model.classes)}",
            hint="train it on with the same classes, or train from the model that it was made of",
        )
    model = with_classes(model, labelled.classes, seed=config.seed)
    images = ImageFeed(
        data, model.preprocessing, config, rank=accelerator.process_index, world=accelerator.num_processes
    )
    try:
        head = find_head(model)
    except ModelError:
        if config.freeze:
            raise
        head = None
    seed_everything("wrap", config.seed)
    network = objective.wrap(model).to(accelerator.device)
    if learned is not None:
        fill(network, learned, what=f"what {config.model!r} has learned")
    part = objective.trainable(network, head) if config.freeze and head is not None else None
    feed, asked = _feed(objective, network, part, images, config, accelerator, watch)
    trainer = Trainer(
        objective,
        network,
        feed=feed,
        config=config,
        accelerator=accelerator,
        head=head,
        part=part,
        asked=asked,
        identity=_identity(config, data),
    )
    return Setting(accelerator=accelerator, model=model, objective=objective, data=data, images=images, trainer=trainer)


def _trained_before(hub: Hub, config: Config, changed: Model) -> tuple[Objective, Model]:
    """Return the objective that a network was changed by, as it was but for what is asked, and the plain network."""
    card = changed.card
    if config.objective != card.objective:
        raise ModelError(
            f"model {config.model!r} was changed by the objective {card.objective!r} already",
            hint=f"train it on by --objective {card.objective}, or train from the model that it was made of",
        )
    asked = convert(hub.objectives.get(card.objective).load(), config.parameters, who=card.objective)
    objective = hub.get_objective(card.objective, **{**card.objective_options, **asked})
    plain = hub.load_model(config.model, device=str(changed.device), scratch=True, size=config.size)
    plain.classes = changed.classes
    return objective, plain.around(plain.module, card=replace(card, objective="", objective_options={}))


def dealt(images: LabelledImages, model: Model, config: Config, watch: Watch, *, known: bool = False) -> Split:
    """Return the data as they are trained on: in the order of the model's classes, readable, and split.

    `known` says that training has read them, and so has refused what cannot be read if it was not to be left out.

    Raises:
        InputError: An image cannot be read, or a class has too few.
    """
    if sorted(model.classes) == sorted(images.classes) and len({*model.classes}) == len(model.classes):
        images = ordered(images, model.classes)  # its classifier is kept, and so is the order of its rows
    if config.skip_unreadable or not known:
        images = readable(images, skip=config.skip_unreadable, watch=watch)
    check_classes(images)
    return split(images, share=config.val, seed=config.seed)


def _feed(
    objective: Objective,
    network: nn.Module,
    part: nn.Module | None,
    images: ImageFeed,
    config: Config,
    accelerator: Accelerator,
    watch: Watch,
) -> tuple[Feed, nn.Module | None]:
    """Keep the features that go into the part that learns, where that is the same as reading images again."""
    if part is None or part is network or config.augments or not objective.on_features:
        return images, None
    kept = cache_features(network, part, images, device=accelerator.device, watch=watch)
    return (images, None) if kept is None else (kept, part)


def _identity(config: Config, data: Split) -> str:
    """Return what a checkpoint must have been made by, so that going on with it is the same run."""
    plan = {name: value for name, value in msgspec.to_builtins(config).items() if name not in _FREE}
    return msgspec.json.encode([plan, data.digest], order="sorted").decode()
