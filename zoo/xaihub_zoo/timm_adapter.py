"""Every architecture of timm."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_data_config
from torch import nn

from xaihub import Hints, Model, ModelAdapter, ModelError, ModelRequest, Preprocessing
from xaihub.weights import fill, read_weights, weights_file

_REMOTE = ("hf-hub:", "hf_hub:", "timm/")


class TimmAdapter(ModelAdapter):
    """Builds models with `timm.create_model`; preprocessing and class names come from the model's own config."""

    def knows(self, name: str) -> bool:
        """Tell whether timm has the architecture, with or without a weights tag, or it is on a hub."""
        if name.startswith((*_REMOTE, "local-dir:")):
            return True
        return timm.is_model(name.partition(".")[0])

    def names(self, pattern: str = "*") -> list[str]:
        """Return timm's architectures and pretrained tags that match a glob pattern."""
        return sorted({*timm.list_models(pattern), *timm.list_models(pattern, pretrained=True)})

    def build(self, request: ModelRequest, device: torch.device) -> Model:
        """Build the model that the request describes."""
        card = request.card
        local = request.checkpoint is not None or card.weights.source in ("package", "file")
        state = None
        if request.checkpoint is not None:
            state, what = read_weights(request.checkpoint), f"checkpoint {request.checkpoint!r}"
        elif local:
            state, what = read_weights(weights_file(card)), f"the weights file of {card.name!r}"
        pretrained = not local and card.weights.source == "pretrained"
        module = self._create(request, pretrained=pretrained, num_classes=self._outputs(request))
        if state is not None:
            module = self._fit(module, request, state, what=what)
        names = _class_names(request, module)
        return Model(
            module,
            name=request.name,
            preprocessing=_preprocessing(module, dict(card.input)),
            classes=names,
            hints=_hints(module, dict(card.layers)),
            card=card,
            device=device,
        )

    def _outputs(self, request: ModelRequest) -> int | None:
        if request.classes is not None:
            return len(request.classes)
        if isinstance(request.card.classes, tuple):
            return len(request.card.classes)
        return request.card.num_classes

    def _create(self, request: ModelRequest, *, pretrained: bool, num_classes: int | None) -> nn.Module:
        name = request.card.architecture
        options = {**request.card.options, **request.options}
        if num_classes is not None:
            options["num_classes"] = num_classes
        try:
            module: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
        except Exception as error:  # timm, huggingface_hub and the network raise many types
            raise _explained(request.name, error) from error
        return module

    def _fit(self, module: nn.Module, request: ModelRequest, state: dict[str, torch.Tensor], *, what: str) -> nn.Module:
        by_order = request.checkpoint is None and request.card.weights.keys == "order"
        outputs = None if by_order or self._outputs(request) is not None else _rows_of_head(module, state)
        if outputs is not None and outputs != module.num_classes:
            module = self._create(request, pretrained=False, num_classes=outputs)
        fill(module, state, what=what, by_order=by_order)
        return module


def _rows_of_head(module: nn.Module, state: dict[str, torch.Tensor]) -> int | None:
    """Return the number of classes that a checkpoint was trained for, read off its classifier."""
    for head in _heads(module):
        weight = state.get(f"{head}.weight")
        if weight is not None:
            return int(weight.shape[0])
    return None


def _heads(module: nn.Module) -> tuple[str, ...]:
    found = (getattr(module, "pretrained_cfg", None) or {}).get("classifier") or ()
    return (found,) if isinstance(found, str) else tuple(found)


def _hints(module: nn.Module, layers: dict[str, str]) -> Hints:
    return Hints(
        prefix_tokens=int(getattr(module, "num_prefix_tokens", 0) or 0),
        channels_last=getattr(module, "output_fmt", "") == "NHWC",
        heads=_heads(module),
        layers=tuple(layers.items()),
    )


def _preprocessing(module: nn.Module, overrides: dict[str, Any]) -> Preprocessing:
    size = overrides.pop("size", None)
    if size is not None:
        overrides["img_size"] = size if isinstance(size, int) else list(size)
    config = resolve_data_config(args=overrides, model=module)
    steps = create_transform(**config, is_training=False).transforms
    spatial = [step for step in steps if "Tensor" not in type(step).__name__ and "Normalize" not in type(step).__name__]
    return Preprocessing(
        spatial=spatial,
        size=tuple(config["input_size"]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        description=dict(sorted(config.items())),
    )


def _class_names(request: ModelRequest, module: nn.Module) -> tuple[str, ...]:
    from xaihub.hub import read_classes

    if request.classes is not None:
        return request.classes
    classes = request.card.classes
    if isinstance(classes, tuple):
        return classes
    if classes != "imagenet-1k":
        from pathlib import Path

        return read_classes(str(Path(request.card.base) / classes))
    config = getattr(module, "pretrained_cfg", None) or {}
    if config.get("label_names"):
        return tuple(map(str, config["label_names"]))
    subset = infer_imagenet_subset(module)
    if subset is None:
        return ()
    info = ImageNetInfo(subset)
    return tuple(info.index_to_description(index, detailed=False) for index in range(info.num_classes()))


def _explained(name: str, error: Exception) -> ModelError:
    text = f"{type(error).__name__}: {error}".strip()
    chain = [error, error.__cause__, error.__context__]
    kinds = " ".join(f"{type(item).__name__} {item}" for item in chain if item is not None)
    if any(word in kinds for word in ("Connect", "Offline", "resolve", "LocalEntryNotFound", "Timeout", "Max retries")):
        return ModelError(
            f"the weights of {name!r} cannot be downloaded: no connection to the hub",
            hint="go online, pass --checkpoint FILE, or use an offline model of 'xaihub list models'",
        )
    return ModelError(f"timm cannot build {name!r}: {text[:300]}")
