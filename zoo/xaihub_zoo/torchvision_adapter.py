"""Adapter for torchvision: classifiers, weights, preprocessing and class names."""

from __future__ import annotations

from fnmatch import fnmatch
from functools import partial
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision import models, transforms
from torchvision.transforms._presets import ImageClassification

from xaihub import Hints, Model, ModelAdapter, ModelError, ModelRequest, Preprocessing
from xaihub.models.cards import check_options
from xaihub.models.weights import fill
from xaihub_zoo.bounds import MANY_CLASSES, bounded, keywords

PREFIX = "torchvision/"
AUXILIARY = ("googlenet", "inception_v3")  # with heads for training from scratch, which a checkpoint may contain


class TorchvisionAdapter(ModelAdapter):
    """Builds classifiers with `torchvision.models.get_model`; names start with "torchvision/"."""

    examples = ("torchvision/shufflenet_v2_x0_5",)

    def knows(self, name: str) -> bool:
        """Whether torchvision has a classifier of that name."""
        return name.removeprefix(PREFIX).partition(".")[0] in models.list_models(module=models)

    def names(self, pattern: str = "*") -> list[str]:
        """Return the classifiers whose full names match a glob pattern."""
        return [PREFIX + name for name in models.list_models(module=models) if fnmatch(PREFIX + name, pattern)]

    def build(self, request: ModelRequest, device: torch.device) -> Model:
        """Build the model that the request describes; "torchvision/resnet50.IMAGENET1K_V1" selects its weights."""
        card = request.card
        if card.input:
            raise ModelError(f"model card {card.name!r}: a card cannot change torchvision's preprocessing")
        name, _, tag = card.architecture.removeprefix(PREFIX).partition(".")
        if not self.knows(name):
            raise ModelError(
                f"torchvision has no classifier {name!r}", hint="xaihub list models --torchvision '*' lists them"
            )
        try:
            weights = models.get_model_weights(name)[tag or "DEFAULT"]
        except KeyError as error:
            known = ", ".join(models.get_model_weights(name).__members__)
            raise ModelError(f"torchvision has no weights {tag!r} for {name!r}", hint=f"it has {known}") from error
        state, what = request.weights()
        download = state is None and card.weights.source == "pretrained"
        builder = models.get_model_builder(name)
        options = {**check_options(card, keywords(builder, factories=[builder])), **request.options}
        many = (request.num_classes() or 0) > MANY_CLASSES
        who = f"model card {card.name!r}" if card.options or many else ""
        classes = request.class_names() or tuple(weights.meta["categories"])
        if (outputs := request.num_classes()) is not None:
            options["num_classes"] = outputs
        if name in AUXILIARY and not download:
            options.setdefault("aux_logits", any("aux" in key.lower() for key in state or ()))
            options.setdefault("init_weights", state is None)
            options.setdefault("transform_input", True)  # as for the weights whose preprocessing is used
        module = self._create(name, weights if download else None, options, who=who)
        if name in AUXILIARY and download:
            whole: Any = module
            whole.aux_logits, whole.AuxLogits = False, None
        trained = None if state is None or "num_classes" in options else _rows_of_head(module, state)
        if trained is not None and trained != len(weights.meta["categories"]):
            module = self._create(name, None, {**options, "num_classes": trained}, who=who)
            classes = ()
        if state is not None:
            fill(module, state, what=what, by_order=request.checkpoint is None and card.weights.keys == "order")
        return Model(
            module,
            name=request.name,
            preprocessing=_preprocessing(weights.transforms()),
            classes=classes,
            hints=Hints(layers=tuple(card.layers.items())),
            card=card,
            device=device,
        )

    def _create(
        self, name: str, weights: models.WeightsEnum | None, options: dict[str, object], *, who: str
    ) -> nn.Module:
        """Build a network, bounded in size if `who` names the card that sets its options."""
        try:
            build = partial(models.get_model, name, weights=weights, **options)
            module: nn.Module = bounded(build, partial(models.get_model, name), who=who) if who else build()
        except OSError as error:  # urllib's errors are OSErrors
            raise ModelError(
                f"the weights of '{PREFIX}{name}' cannot be downloaded: {error}",
                hint="go online, pass --checkpoint FILE, or use an offline model from 'xaihub list models'",
            ) from error
        except ModelError:
            raise
        except Exception as error:  # constructors raise many types for values that they do not check
            raise ModelError(f"torchvision {torchvision.__version__} cannot build {name!r}: {error}") from error
        return module


def _rows_of_head(module: nn.Module, state: dict[str, torch.Tensor]) -> int | None:
    """Return the number of classes of some weights: the only dimension in which they differ from the module."""
    own = {name: tensor.shape for name, tensor in module.state_dict().items()}
    other = {
        int(tensor.shape[0])
        for name, tensor in state.items()
        if name in own and tensor.ndim and own[name] != tensor.shape and own[name][1:] == tensor.shape[1:]
    }
    return other.pop() if len(other) == 1 else None


def _preprocessing(preset: ImageClassification) -> Preprocessing:
    crop, resize = preset.crop_size[0], preset.resize_size[0]
    return Preprocessing(
        spatial=[
            transforms.Resize(preset.resize_size, interpolation=preset.interpolation, antialias=preset.antialias),
            transforms.CenterCrop(preset.crop_size),
        ],
        size=(3, crop, crop),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        description={
            "input_size": (3, crop, crop),
            "resize_size": resize,
            "interpolation": preset.interpolation.value,
            "mean": tuple(preset.mean),
            "std": tuple(preset.std),
        },
    )
