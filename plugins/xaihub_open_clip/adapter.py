"""Adapter for OpenCLIP: the image tower as a network of features, and the text tower for prompts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transformer import VisionTransformer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from xaihub import Hints, Model, ModelAdapter, ModelError, ModelRequest, Preprocessing, TextEncoder
from xaihub.errors import did_you_mean
from xaihub.files import check_file, decoding, inside, rooted

PREFIX = "openclip/"
LARGEST = 2**22  # bytes of a configuration
_HUB = "hf-hub:"
_FOLDER = "local-dir:"
_CONVERSIONS = ("MaybeConvertMode", "MaybeToTensor", "ToTensor", "Normalize")


class OpenClipAdapter(ModelAdapter):
    """Builds networks of OpenCLIP; names are "openclip/" with an architecture, a repository of the hub, or a folder.

    An architecture may be followed by "." and a tag of its weights; by default the first that OpenCLIP lists. A
    repository begins with "hf-hub:", and a folder contains open_clip_config.json.
    """

    examples = (PREFIX + "ViT-S-32-alt",)  # the smallest

    def knows(self, name: str) -> bool:
        """Whether the name has the prefix; OpenCLIP decides about the rest."""
        return name.startswith(PREFIX) and len(name) > len(PREFIX)

    def rooted(self, name: str) -> str:
        """Return the name with the absolute path of a folder."""
        own = name.removeprefix(PREFIX)
        return rooted(name, PREFIX + (_FOLDER if own.startswith(_FOLDER) else "")) if _folder(own) else name

    def names(self, pattern: str = "*") -> list[str]:
        """Return the architectures whose full names match a glob pattern."""
        return [PREFIX + name for name in open_clip.list_models() if fnmatch(PREFIX + name, pattern)]

    def build(self, request: ModelRequest, device: torch.device) -> Model:
        """Build the model that the request describes."""
        card = request.card
        if card.options or card.input or request.options:
            raise ModelError(f"the architecture and preprocessing of {request.name!r} are set by OpenCLIP")
        if request.class_names() or card.num_classes is not None:
            raise ModelError(f"{request.name!r} has no classes of its own", hint='give them as text: --text "a dog"')
        source = _Source(card.architecture.removeprefix(PREFIX), base=card.base)
        random = card.weights.source == "none"
        file = request.weights_file() or (None if random else source.weights())
        download = file is None and not random
        try:
            with _quiet(), self.downloading(request.name, asks_hub=download):
                network: Any = source.create(download=download)
                tower = ImageTower(network.visual)
                alone = file is not None and _load(network, tower, file)
                tokenizer = open_clip.get_tokenizer(source.name)
        except ModelError:
            raise
        except Exception as error:  # OpenCLIP raises many types
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"OpenCLIP cannot load {request.name!r}: {type(error).__name__}: {reason}") from error
        return Model(
            tower,
            name=request.name,
            preprocessing=_preprocessing(network),
            outputs="embedding",
            hints=Hints(prefix_tokens=_prefix_tokens(network.visual), layers=tuple(card.layers.items())),
            card=card,
            device=device,
            text_encoder=None if alone else _text_encoder(network, tokenizer),
        )


def _folder(name: str, base: str = "") -> Path | None:
    """Return the folder that a name is that of, which goes before an architecture; None for any other name."""
    folder = Path(base) / Path(name.removeprefix(_FOLDER)).expanduser()
    return folder if folder.is_dir() or name.startswith(("/", ".", "~", _FOLDER)) else None


class _Source:
    """An architecture with a tag, a repository of the hub, or a folder, under the name that OpenCLIP gives it."""

    def __init__(self, name: str, *, base: str) -> None:
        self.folder = folder = _folder(name, base)
        self.tag = ""
        if folder is not None:
            if base:
                inside(base, str(folder), who=f"model {name!r}", error=ModelError)
            check_file(folder / "open_clip_config.json", what="configuration", error=ModelError, limit=LARGEST)
            self.name = f"{_FOLDER}{folder}"
        elif name.startswith(_HUB):
            self.name = name
        else:
            self.name, _, self.tag = name.partition(".")
            self._check_names()

    def _check_names(self) -> None:
        known = open_clip.list_models()
        if self.name not in known:
            raise ModelError(
                f"OpenCLIP has no architecture {self.name!r}",
                hint=did_you_mean(self.name, known) or "open_clip.list_models() lists them",
            )
        tags = open_clip.list_pretrained_tags_by_model(self.name)
        if self.tag and self.tag not in tags:
            raise ModelError(
                f"OpenCLIP has no weights {self.tag!r} for {self.name!r}", hint=f"it has {', '.join(tags[:8])}"
            )
        self.tag = self.tag or next(iter(tags), "")

    def weights(self) -> Path | None:
        """Return the weights in the folder; None if there is no folder.

        Raises:
            ModelError: It has none, or several.
        """
        if self.folder is None:
            return None
        files = sorted(self.folder.glob("*.safetensors"))
        if len(files) != 1:
            raise ModelError(
                f"folder {str(self.folder)!r} has {len(files)} files of weights in safetensors instead of one",
                hint="pickled weights (.bin, .pt) are never loaded; choose one of several with --checkpoint FILE",
            )
        return files[0]

    def create(self, *, download: bool) -> Any:
        """Return the network, with the weights of the tag or the repository if they are to be downloaded."""
        if not download:
            return open_clip.create_model(self.name, pretrained=None, load_weights=False, pretrained_text=False)
        if not self.tag and self.folder is None and not self.name.startswith(_HUB):
            raise ModelError(f"OpenCLIP has no weights for {self.name!r}", hint="pass --checkpoint FILE")
        # Some weights were trained with another activation than that of the architecture of their name.
        quick = bool(self.tag and open_clip.get_pretrained_cfg(self.name, self.tag).get("quick_gelu"))
        return open_clip.create_model(
            self.name,
            pretrained=self.tag or None,
            force_quick_gelu=quick,
            pretrained_text=False,
            require_pretrained=True,
        )


def _load(network: nn.Module, tower: ImageTower, file: Path) -> bool:
    """Load weights, every entry of which must match; return whether they are those of the image tower alone."""
    check_file(file, what="checkpoint", error=ModelError)
    if file.suffix != ".safetensors":
        raise ModelError(f"checkpoint {str(file)!r} is not a .safetensors file", hint="save it with safetensors.torch")
    with decoding(ModelError(f"checkpoint {str(file)!r} is damaged, or does not match the architecture")):
        with safe_open(file, "pt") as weights:
            alone = all(name.startswith("visual.") for name in weights.keys())  # noqa: SIM118 - it is no mapping
        if alone:
            tower.load_state_dict(load_file(file), strict=True)
        else:
            open_clip.load_checkpoint(network, str(file), strict=True)
        return alone


class ImageTower(nn.Module):
    """Returns the features of images that are compared with those of texts."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        if getattr(visual, "output_tokens", False):  # CoCa's decoder reads the tokens as well
            visual.output_tokens = False
        self.visual = visual

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (B, D) features of (B, C, H, W) inputs."""
        features: Tensor = self.visual(pixels)
        return features

    def token_entrance(self) -> tuple[nn.Module, tuple[int, int], int] | None:
        """Return the module through which all tokens enter the blocks, (rows, columns) of a patch, and prefix tokens.

        None if patches cannot be dropped there, because more than the class token is read.
        """
        visual = self.visual
        if not isinstance(visual, VisionTransformer) or visual.pool_type != "tok" or visual.attn_pool is not None:
            return None
        rows, columns = visual.conv1.kernel_size
        return visual.ln_pre, (rows, columns), 1


@contextmanager
def _quiet() -> Iterator[None]:
    """Switch off what OpenCLIP writes to the root logger, which would also install a handler for it."""
    root, nothing = logging.getLogger(), logging.NullHandler()

    def refuse(_record: logging.LogRecord) -> bool:
        return False

    root.addHandler(nothing)
    root.addFilter(refuse)
    try:
        yield
    finally:
        root.removeFilter(refuse)
        root.removeHandler(nothing)


def _prefix_tokens(tower: Any) -> int:
    if isinstance(getattr(tower, "class_embedding", None), Tensor):
        return 1
    return int(getattr(getattr(tower, "trunk", None), "num_prefix_tokens", 0) or 0)


def _preprocessing(network: Any) -> Preprocessing:
    settings = open_clip.get_model_preprocess_cfg(network)
    size = settings["size"]
    sides = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    names = ("mean", "std", "interpolation", "resize_mode", "fill_color")
    steps = open_clip.image_transform(sides, is_train=False, **{name: settings[name] for name in names}).transforms
    return Preprocessing(
        spatial=[step for step in steps if type(step).__name__ not in _CONVERSIONS],
        size=(3, *sides),
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        description={**{name: settings[name] for name in names}, "input_size": (3, *sides)},
    )


def _text_encoder(network: Any, tokenizer: Any) -> TextEncoder:
    network.eval()  # the image tower is switched by its model

    def encode(texts: Sequence[str]) -> Tensor:
        features: Tensor = network.encode_text(tokenizer(list(texts)))
        return features

    bias = getattr(network, "logit_bias", None)
    return TextEncoder(
        encode=encode, scale=network.logit_scale.exp().item(), bias=None if bias is None else bias.item()
    )
