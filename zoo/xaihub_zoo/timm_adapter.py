"""Adapter for timm: architectures, weights, preprocessing and class names."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config
from timm.models import build_model_with_cfg, get_pretrained_cfg, model_entrypoint
from torch import nn

from xaihub import Hints, Model, ModelAdapter, ModelError, ModelRequest, Preprocessing
from xaihub.files import check_file, inside, rooted
from xaihub.models.cards import check_options
from xaihub.models.weights import fill, read_weights
from xaihub.specs import ModelCard
from xaihub_zoo.bounds import MANY_CLASSES, SMALL, bounded, keywords

_HUB = ("hf-hub:", "hf_hub:")
_FOLDER = "local-dir:"
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt")
_MOST_PATCHES = 10_000  # attention compares each with each
# They turn a classifier into an extractor of features; timm takes them in addition to the constructor's keywords.
_EXTRACTOR = {"features_only", "feature_cls", "out_indices"}
_OWN = "timm/"


class TimmAdapter(ModelAdapter):
    """Builds models with `timm.create_model`; preprocessing and class names come from the model's own config."""

    examples = ("test_resnet", "test_vit")

    def knows(self, name: str) -> bool:
        """Whether timm has the architecture, with or without a weights tag, or the name refers to a hub."""
        if name.startswith((*_HUB, _FOLDER)):
            return True
        return timm.is_model(name.removeprefix(_OWN).partition(".")[0])

    def rooted(self, name: str) -> str:
        """Return the name with the absolute path of a folder."""
        return rooted(name, _FOLDER) if name.startswith(_FOLDER) else name

    def names(self, pattern: str = "*") -> list[str]:
        """Return timm's architectures and pretrained tags that match a glob pattern."""
        return sorted({*timm.list_models(pattern), *timm.list_models(pattern, pretrained=True)})

    def build(self, request: ModelRequest, device: torch.device) -> Model:
        """Build the model that the request describes."""
        request = _with_folder(request)
        card = request.card
        state, what = request.weights()
        pretrained = state is None and card.weights.source == "pretrained"
        module = self._create(request, pretrained=pretrained, num_classes=request.num_classes())
        if pretrained:
            _refuse_new_head(module, request)
        if state is not None:
            module = self._fit(module, request, state, what=what)
        patches = getattr(getattr(module, "patch_embed", None), "num_patches", 0)
        if (card.options or card.input) and patches > _MOST_PATCHES:
            raise ModelError(
                f"model card {card.name!r}: images would be cut into {patches:,} patches, more than {_MOST_PATCHES:,}",
                hint="reduce the size, or enlarge the patches",
            )
        names = _class_names(request, module) if getattr(module, "num_classes", None) != 0 else ()
        preprocessing = _preprocessing(module, dict(card.input), {**card.options, **request.options}.get("in_chans"))
        if _needs_size(card.architecture.removeprefix(_OWN), preprocessing.size[1:]):
            _try_size(module, preprocessing.size, request.name)
        return Model(
            module,
            name=request.name,
            preprocessing=preprocessing,
            classes=names,
            outputs="embedding" if getattr(module, "num_classes", None) == 0 else None,
            hints=_hints(module, dict(card.layers)),
            card=card,
            device=device,
        )

    def _create(self, request: ModelRequest, *, pretrained: bool, num_classes: int | None) -> nn.Module:
        name = request.card.architecture.removeprefix(_OWN)
        options = {**_options(request.card, name), **request.options}
        if num_classes is not None:
            options["num_classes"] = num_classes
        size = request.card.input.get("size")
        sides = (size, size) if isinstance(size, int) else size and tuple(size)
        if sides and _needs_size(name, sides):
            options.setdefault("img_size", sides)
        try:
            with self.downloading(request.name, asks_hub=pretrained or name.startswith(_HUB)):
                build = partial(timm.create_model, name, pretrained=pretrained, **options)
                who = f"model card {request.card.name!r}"
                if name.startswith(_FOLDER):
                    module: nn.Module = bounded(build, None, who=who, least=max(SMALL, 4 * _check_folder(name)))
                elif request.card.options or (num_classes or 0) > MANY_CLASSES:
                    module = bounded(build, partial(timm.create_model, name), who=who)
                else:
                    module = build()
        except ModelError:
            raise
        except Exception as error:  # timm, huggingface_hub and the network raise many types
            raise _explained(request.name, error) from error
        return module

    def _fit(self, module: nn.Module, request: ModelRequest, state: dict[str, torch.Tensor], *, what: str) -> nn.Module:
        by_order = request.checkpoint is None and request.card.weights.keys == "order"
        outputs, wanted = None if by_order else _rows_of_head(module, state), request.num_classes()
        if outputs is not None and wanted is not None and outputs != wanted:
            raise ModelError(f"{what} has {outputs} classes, but {wanted} are named", hint="list each class once")
        if outputs is not None and outputs != module.num_classes:
            module = self._create(request, pretrained=False, num_classes=outputs)
        fill(module, state, what=what, by_order=by_order)
        return module


def _with_folder(request: ModelRequest) -> ModelRequest:
    """Return a request for the folder that a card names relative to itself."""
    card = request.card
    name = card.architecture.removeprefix(_OWN)
    if not card.base or not name.startswith(_FOLDER):
        return request
    folder = inside(card.base, name.removeprefix(_FOLDER), who=f"model card {card.name!r}", error=ModelError)
    return replace(request, card=replace(card, architecture=f"{_FOLDER}{folder}"))


def _check_folder(name: str) -> int:
    """Return the size of the weights in a folder, all of which can be read without running code."""
    folder = Path(name.removeprefix(_FOLDER))
    check_file(folder / "config.json", what="configuration", error=ModelError, limit=2**22)
    files = [file for file in folder.glob("*") if file.suffix in _WEIGHTS]
    for file in files:
        read_weights(file)
    return sum(file.stat().st_size for file in files)


def _options(card: ModelCard, name: str) -> dict[str, Any]:
    """Return a card's options, which must be keywords of the architecture's constructor."""
    base = name.partition(".")[0]
    if not card.options or not timm.is_model(base):
        return check_options(card, {"in_chans", "drop_rate", "drop_path_rate", "global_pool", "img_size"})
    factories = (timm.create_model, build_model_with_cfg)
    return check_options(card, keywords(model_entrypoint(base), factories=factories) - _EXTRACTOR)


def _needs_size(name: str, sides: tuple[int, int]) -> bool:
    """Whether an architecture is built for a fixed input size that differs from `sides`, so that it must be passed."""
    config = None if name.startswith(_HUB) else get_pretrained_cfg(name, allow_unregistered=True)
    return config is not None and bool(config.fixed_input_size) and sides != tuple(config.input_size[1:])


def _try_size(module: nn.Module, size: tuple[int, int, int], name: str) -> None:
    """Refuse a size that the constructor accepted but the network cannot process; not all architectures check it."""
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(1, *size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ModelError(
            f"{name!r} cannot process images of {size[1]}x{size[2]}: {error}", hint="try another size"
        ) from error


def _refuse_new_head(module: nn.Module, request: ModelRequest) -> None:
    """Refuse pretrained weights whose classifier timm replaced with a random one."""
    trained = (getattr(module, "pretrained_cfg", None) or {}).get("num_classes")
    outputs = getattr(module, "num_classes", trained)
    if trained is not None and outputs not in (trained, 0):  # without a classifier, nothing is random
        raise ModelError(
            f"the weights of {request.name!r} are for {trained} classes, not {outputs}",
            hint="pass --checkpoint FILE with weights for these classes",
        )


def _rows_of_head(module: nn.Module, state: dict[str, torch.Tensor]) -> int | None:
    """Return the number of classes of a checkpoint, from the shape of its classifier."""
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


def _preprocessing(module: nn.Module, overrides: dict[str, Any], channels: int | None = None) -> Preprocessing:
    """Return the preprocessing of the module's configuration; `channels` overrides the number of input channels."""
    size, bands = overrides.pop("size", None), overrides.pop("bands", None) or ()
    values, given = overrides.pop("range", None), {"mean", "std"} & overrides.keys()
    own = (getattr(module, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    if size is not None or channels is not None:
        height, width = own[1:] if size is None else (size, size) if isinstance(size, int) else size
        overrides["input_size"] = (own[0] if channels is None else channels, height, width)
    try:
        config = resolve_data_config(args=overrides, model=module)
        count = config["input_size"][0]
        if count not in (1, 3) and len(given) < 2:
            raise ModelError(
                f"the model takes {count} channels, for which nothing declares mean and std",
                hint="set both, with one value or one per channel, under input in a model card",
            )
        for name in ("mean", "std"):  # per-colour values, if the model takes grey images
            if len(config[name]) != count and not (count > 1 and name in given):
                config[name] = (sum(config[name]) / len(config[name]),) * count
    except (AssertionError, ValueError, TypeError) as error:
        why = str(error) or ", ".join(overrides)
        raise ModelError(f"the input settings of the model card do not fit the architecture: {why}") from error
    return Preprocessing.standard(**config, range=values, bands=bands)


def _class_names(request: ModelRequest, module: nn.Module) -> tuple[str, ...]:
    given = request.class_names()
    if given is not None:
        return given
    config = getattr(module, "pretrained_cfg", None) or {}
    if config.get("label_names"):
        return tuple(map(str, config["label_names"]))
    subset = infer_imagenet_subset(module)
    return () if subset is None else _imagenet_names(subset)


@cache  # reading the lists takes longer than making a small network
def _imagenet_names(subset: str) -> tuple[str, ...]:
    info = ImageNetInfo(subset)
    return tuple(info.index_to_description(index, detailed=False) for index in range(info.num_classes()))


def _explained(name: str, error: Exception) -> ModelError:
    if "Invalid pretrained tag" in str(error):
        base, _, tag = name.removeprefix(_OWN).partition(".")
        known = [full.partition(".")[2] for full in timm.list_models(f"{base}.*", pretrained=True)]
        return ModelError(f"timm has no weights {tag!r} for {base!r}", hint=f"it has {', '.join(known) or 'none'}")
    text = f"{type(error).__name__}: {error}".strip()
    return ModelError(f"timm cannot build {name!r}: {text[:300]}")
