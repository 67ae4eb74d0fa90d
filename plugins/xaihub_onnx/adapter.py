"""Adapter for ONNX files: the file, its preprocessing and its settings, from a card or from options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from xaihub import Model, ModelAdapter, ModelError, ModelRequest, Preprocessing
from xaihub.errors import did_you_mean
from xaihub.files import check_file, inside, rooted
from xaihub_onnx.network import OnnxNetwork

PREFIX, SUFFIX = "onnx/", ".onnx"
_INPUT = ("size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
_NETWORK = {"layout": ("NCHW", "NHWC"), "colours": ("RGB", "BGR"), "output": (), "probabilities": (True, False)}


class OnnxAdapter(ModelAdapter):
    """Opens ONNX files; names are paths that end in .onnx, or "onnx/" with a path."""

    def knows(self, name: str) -> bool:
        """Whether the name is that of an ONNX file."""
        return name.startswith(PREFIX) or name.lower().endswith(SUFFIX)

    def rooted(self, name: str) -> str:
        """Return the name with the absolute path of the file."""
        return rooted(name, PREFIX if name.startswith(PREFIX) else "")

    def build(self, request: ModelRequest, device: torch.device) -> Model:
        """Build the model that the request describes."""
        card = request.card
        if card.weights.source == "none":
            raise ModelError(f"{request.name!r} cannot have random weights, because an ONNX file contains its own")
        settings = {**card.input, **card.options, **request.options}
        unknown = [name for name in settings if name not in (*_INPUT, *_NETWORK)]
        if unknown:
            known = (*_INPUT, *_NETWORK)
            hint = did_you_mean(unknown[0], known) or f"known: {', '.join(known)}"
            raise ModelError(f"an ONNX file has no option {unknown[0]!r}", hint=hint)
        own = {name: settings[name] for name in _NETWORK if name in settings}
        for name, value in own.items():
            if _NETWORK[name] and value not in _NETWORK[name]:
                raise ModelError(
                    f"{name} of an ONNX file cannot be {value!r}", hint=f"use {' or '.join(map(str, _NETWORK[name]))}"
                )
        file = _file(request)
        network = OnnxNetwork(file, cuda=device.type == "cuda", **own)
        given = {name: settings[name] for name in _INPUT if name in settings}
        preprocessing = _preprocessing(request.name, network, given)
        network.fit_batch(preprocessing.size)
        return Model(
            network,
            name=request.name,
            preprocessing=preprocessing,
            classes=request.class_names() or () if request.classes or card.classes != "imagenet-1k" else (),
            card=card,
            device=device,
        )


def _file(request: ModelRequest) -> Path:
    """Return the file of the checkpoint, of the card's weights, or of the name."""
    file = request.weights_file()
    if file is None:
        path = request.card.architecture.removeprefix(PREFIX)
        base = request.card.base
        file = Path(base) / Path(path).expanduser()
        if base:
            inside(base, str(file), who=f"model card {request.card.name!r}", error=ModelError)
    check_file(file, what="ONNX file", error=ModelError)
    return file


def _preprocessing(name: str, network: OnnxNetwork, given: dict[str, Any]) -> Preprocessing:
    """Return the preprocessing that the card or the options describe.

    Raises:
        ModelError: There is none, or it contradicts the file's input.
    """
    if "mean" not in given or "std" not in given:
        raise ModelError(
            f"the preprocessing of {name!r} is unknown, because an ONNX file does not contain it",
            hint="give mean, std and size, in units of [0, 1]: --input mean=0.5,0.5,0.5, under 'input' in a card with"
            " adapter: onnx, or as options in Python",
        )
    channels, *sides = network.size
    wanted = given.pop("size", None)
    if wanted is not None:
        wanted = [wanted, wanted] if isinstance(wanted, int) else list(wanted)
    size = [own or side for own, side in zip(sides, wanted or [None, None], strict=True)]
    if None in size:
        raise ModelError(f"{name!r} takes images of any size", hint="give the size for which it was trained")
    if wanted is not None and size != wanted:
        raise ModelError(f"{name!r} takes images of {size[0]}x{size[1]}, not {wanted[0]}x{wanted[1]}")
    return Preprocessing.standard(input_size=(channels or len(given["mean"]), size[0], size[1]), **given)
