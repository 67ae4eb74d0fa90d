"""The classifiers of torchvision."""

from __future__ import annotations

from fnmatch import fnmatch

import torch
import torchvision
from torch import nn
from torchvision import models, transforms
from torchvision.transforms._presets import ImageClassification

from xaihub import Hints, Model, ModelAdapter, ModelError, ModelRequest, Preprocessing
from xaihub.weights import fill, read_weights, weights_file

PREFIX = "torchvision/"


class TorchvisionAdapter(ModelAdapter):
    """Builds classifiers with `torchvision.models.get_model`; names start with "torchvision/"."""

    examples = ("torchvision/shufflenet_v2_x0_5",)

    def knows(self, name: str) -> bool:
        """Tell whether torchvision has a classifier of that name."""
        return name.removeprefix(PREFIX).partition(".")[0] in models.list_models(module=models)

    def names(self, pattern: str = "*") -> list[str]:
        """Return the classifiers whose full names match a glob pattern."""
        return [PREFIX + name for name in models.list_models(module=models) if fnmatch(PREFIX + name, pattern)]

    def build(self, request: ModelRequest, device: torch.device) -> Model:
        """Build the model that the request describes; "torchvision/resnet50.IMAGENET1K_V1" names the weights."""
        card = request.card
        if card.input:
            raise ModelError(f"model card {card.name!r}: torchvision's preprocessing cannot be changed by a card")
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
        state = None
        if request.checkpoint is not None:
            state, what = read_weights(request.checkpoint), f"checkpoint {request.checkpoint!r}"
        elif card.weights.source in ("package", "file"):
            state, what = read_weights(weights_file(card)), f"the weights file of {card.name!r}"
        download = state is None and card.weights.source == "pretrained"
        options = {**card.options, **request.options}
        classes = request.class_names() or tuple(weights.meta["categories"])
        if (outputs := request.num_classes()) is not None:
            options["num_classes"] = outputs
        module = self._create(name, weights if download else None, options)
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

    def _create(self, name: str, weights: models.WeightsEnum | None, options: dict[str, object]) -> nn.Module:
        try:
            module: nn.Module = models.get_model(name, weights=weights, **options)
        except OSError as error:  # urllib's errors are OSErrors
            raise ModelError(
                f"the weights of '{PREFIX}{name}' cannot be downloaded: {error}",
                hint="go online, pass --checkpoint FILE, or use an offline model of 'xaihub list models'",
            ) from error
        except (TypeError, ValueError) as error:
            raise ModelError(f"torchvision {torchvision.__version__} cannot build {name!r}: {error}") from error
        return module


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
