"""Adapter for transformers: configurations, weights in safetensors, image processors and class names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.utils import logging

from xaihub import Hints, Model, ModelAdapter, ModelError, ModelRequest, Preprocessing, TextEncoder
from xaihub.files import check_file, inside, rooted
from xaihub_transformers.attention import NAME, mark
from xaihub_transformers.networks import Backbone, Classifier, ImageTower, prefix_tokens
from xaihub_transformers.preprocessing import preprocessing

PREFIX = "transformers/"
LARGEST = 2**22  # bytes of a configuration
# What a network's configuration calls its task, and what its outputs are then.
_KINDS = {
    "regression": "regression",
    "single_label_classification": "multiclass",
    "multi_label_classification": "multilabel",
}
_WITH_TEXT = ("clip", "siglip")
_SAVE = "save the network's own tokenizer next to it, or use OpenCLIP: -m openclip/ARCHITECTURE"
_LOCAL = {"trust_remote_code": False}  # code of a repository is never run
_WEIGHTS = {"use_safetensors": True}  # other files are pickles


class TransformersAdapter(ModelAdapter):
    """Builds networks of transformers; names are "transformers/" with a folder or a repository of the hub.

    A repository may be followed by "@" and a revision.
    """

    def knows(self, name: str) -> bool:
        """Whether the name has the prefix; a folder or the hub decides about the rest."""
        return name.startswith(PREFIX) and len(name) > len(PREFIX)

    def rooted(self, name: str) -> str:
        """Return the name with the absolute path of a folder."""
        return rooted(name, PREFIX) if _Source.is_folder(name.removeprefix(PREFIX)) else name

    def build(self, request: ModelRequest, device: torch.device) -> Model:
        """Build the model that the request describes."""
        card = request.card
        if request.checkpoint is not None or card.weights.source in ("package", "file"):
            raise ModelError(
                f"the weights of {request.name!r} cannot be replaced",
                hint=f"save them with its config.json in a folder, and use -m {PREFIX}FOLDER",
            )
        if card.options or request.options or card.num_classes is not None:
            raise ModelError(f"the architecture of {request.name!r} is set by its config.json, not by a card")
        source = _Source(card.architecture.removeprefix(PREFIX), base=card.base)
        try:
            with _quiet(), self.downloading(request.name, asks_hub=not source.local):
                return self._build(request, source, device)
        except ModelError:
            raise
        except Exception as error:  # transformers raises many types
            raise _explained(request.name, error) from error

    def _build(self, request: ModelRequest, source: _Source, device: torch.device) -> Model:
        config = AutoConfig.from_pretrained(source.name, **source.options)
        random = request.card.weights.source == "none"
        classes, encoder = request.class_names(), None
        kind: str | None = "embedding"
        loader: Any = AutoModelForImageClassification if _classifies(config) else AutoModel
        network = _network(loader, source, config, random=random)
        if config.model_type in _WITH_TEXT and loader is AutoModel:
            encoder = _text_encoder(network, source)
            inner: nn.Module = ImageTower(network)
        elif loader is AutoModel:
            inner = Backbone(network)
        else:
            inner, kind = Classifier(network), _kind(config)
            classes = _class_names(config) if classes is None else classes
        shape = _preprocessing(request, source, config)
        try:
            mark(inner, shape.size)
        except Exception as error:  # a network that takes more than pixels, such as texts
            raise _needs_more(request.name, network, error) from error
        return Model(
            inner,
            name=request.name,
            preprocessing=shape,
            classes=() if kind == "embedding" else classes or (),
            outputs=kind,
            hints=Hints(prefix_tokens=prefix_tokens(inner), layers=tuple(request.card.layers.items())),
            card=request.card,
            device=device,
            text_encoder=encoder,
        )


class _Source:
    """A folder, or a repository of the hub."""

    def __init__(self, name: str, *, base: str) -> None:
        folder = Path(base) / Path(name).expanduser()
        self.local = self.is_folder(name, base)
        self.name, _, revision = (str(folder), "", "") if self.local else name.partition("@")
        self.options: dict[str, Any] = {**_LOCAL, **({"revision": revision} if revision else {})}
        if not self.local:
            return
        if base:
            inside(base, str(folder), who=f"model {name!r}", error=ModelError)
        check_file(Path(self.name) / "config.json", what="configuration", error=ModelError, limit=LARGEST)

    @staticmethod
    def is_folder(name: str, base: str = "") -> bool:
        """Whether a name is that of a folder, which goes before a repository."""
        return (Path(base) / Path(name).expanduser()).is_dir() or name.startswith(("/", ".", "~"))

    def check_weights(self) -> None:
        """Refuse a folder without weights in safetensors."""
        if self.local and not any(Path(self.name).glob("*.safetensors")):
            raise ModelError(
                f"folder {self.name!r} has no weights in safetensors, and pickled ones (.bin) are never loaded",
                hint="save them with save_pretrained(folder)",
            )


def _network(loader: Any, source: _Source, config: PreTrainedConfig, *, random: bool) -> Any:
    """Return the network with its weights, of which none may be random."""
    # Texts are attended to in one direction, with a mask that only the library's own attention gets.
    both = config.model_type in _WITH_TEXT and hasattr(config, "text_config")
    attention = {"vision_config": NAME, "text_config": "sdpa"} if both else NAME
    if random:
        return loader.from_config(config, attn_implementation=attention, **_LOCAL)
    source.check_weights()
    network, info = loader.from_pretrained(
        source.name,
        config=config,
        attn_implementation=attention,
        output_loading_info=True,
        **_WEIGHTS,
        **source.options,
    )
    missing = sorted(info["missing_keys"])
    if missing and all(name.startswith("pooler.") for name in missing):
        network.pooler = None  # pretraining has none, and a new one would be random
        missing = []
    if missing or info.get("mismatched_keys"):
        first = (missing or sorted(map(str, info["mismatched_keys"])))[0]
        raise ModelError(
            f"{source.name!r} has no weights for {len(missing)} entries of its network, the first being {first!r}",
            hint="use a repository whose weights are complete",
        )
    return network


@contextmanager
def _quiet() -> Iterator[None]:
    """Switch the library's messages and progress bars off inside."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _classifies(config: PreTrainedConfig) -> bool:
    """Whether the weights are those of a classifier, by the class that saved them."""
    return any("ForImageClassification" in name for name in config.architectures or ())


def _kind(config: PreTrainedConfig) -> str | None:
    """Return the kind of a classifier's outputs; None leaves a single output undeclared."""
    declared = _KINDS.get(config.problem_type or "")
    return "binary" if declared == "multilabel" and config.num_labels == 1 else declared


def _class_names(config: PreTrainedConfig) -> tuple[str, ...]:
    """Return the names in `id2label`; none if they are placeholders."""
    names = tuple(str(config.id2label[index]) for index in sorted(config.id2label))
    placeholders = tuple(f"LABEL_{index}" for index in range(len(names)))
    return () if names == placeholders else names


def _preprocessing(request: ModelRequest, source: _Source, config: Any) -> Preprocessing:
    """Return the preprocessing of the image processor, or of the card."""
    vision = getattr(config, "vision_config", config)
    channels, given = int(getattr(vision, "num_channels", 3)), dict(request.card.input)
    side = getattr(vision, "image_size", 224)
    sides = (int(side), int(side)) if isinstance(side, int) else (int(side[0]), int(side[1]))
    if {"mean", "std"} <= given.keys():
        size = given.pop("size", sides)
        sides = (size, size) if isinstance(size, int) else tuple(size)
        return Preprocessing.standard(input_size=(channels, *sides), **given)
    if given:
        raise ModelError(
            f"model card {request.card.name!r} changes the preprocessing of {request.name!r} in part",
            hint="set size, mean and std under 'input', or leave it out",
        )
    processor = None
    with suppress(OSError, ValueError):  # there is none
        processor = AutoImageProcessor.from_pretrained(source.name, **source.options)
    if processor is None:
        raise ModelError(
            f"the preprocessing of {request.name!r} is unknown: there is no preprocessor_config.json",
            hint="write a card with adapter: transformers, and size, mean and std under 'input'",
        )
    return preprocessing(processor, sides, channels)


def _text_encoder(network: Any, source: _Source) -> TextEncoder:
    """Return the text side of a CLIP or SigLIP network."""
    tokenizer: Any = None
    bias = getattr(network, "logit_bias", None)

    def encode(texts: Sequence[str]) -> Tensor:
        nonlocal tokenizer
        tokenizer = tokenizer or _tokenizer(source)
        # SigLIP was trained on texts of a fixed length.
        tokens = tokenizer(
            list(texts), padding="longest" if bias is None else "max_length", truncation=True, return_tensors="pt"
        )
        read, size = tokens["input_ids"], network.config.text_config.vocab_size
        if int(read.max()) >= size or len(read.unique(dim=0)) < len({*texts}):
            raise ModelError(
                f"the tokenizer of {source.name!r} does not fit the network: it reads different texts as the same, or"
                f" knows more than {size} tokens",
                hint=_SAVE,
            )
        found = network.get_text_features(**tokens.to(network.device))
        features: Tensor = getattr(found, "pooler_output", found)
        return features

    return TextEncoder(
        encode=encode, scale=network.logit_scale.exp().item(), bias=None if bias is None else bias.item()
    )


def _tokenizer(source: _Source) -> Any:
    try:
        return AutoTokenizer.from_pretrained(source.name, **source.options)
    except Exception as error:  # transformers and the libraries of tokenizers raise many types
        reason = " ".join(str(error).split())[:150]
        raise ModelError(f"the tokenizer of {source.name!r} cannot be loaded: {reason}", hint=_SAVE) from error


def _needs_more(name: str, network: Any, error: Exception) -> ModelError:
    """Return the refusal of a network that cannot be run on images alone."""
    reason = " ".join(str(error).split())[:150]
    hint = "pass the network in a module of your own to xaihub.Model"
    if hasattr(network, "get_text_features"):
        hint = "for images and texts, use its weights through OpenCLIP: -m openclip/ARCHITECTURE --text PROMPT"
    return ModelError(f"{name!r} ({type(network).__name__}) cannot be run on images alone: {reason}", hint=hint)


def _explained(name: str, error: Exception) -> ModelError:
    """Return one line for what transformers raised."""
    text = str(error)
    if "trust_remote_code" in text or "custom code" in text:
        return ModelError(
            f"{name!r} needs code from its repository, which is never run",
            hint="load it in Python and pass the network to xaihub.Model",
        )
    if "safetensors" in text:
        return ModelError(f"{name!r} has no weights in safetensors, and pickled ones (.bin) are never loaded")
    return ModelError(f"transformers cannot load {name!r}: {type(error).__name__}: {text[:300]}")
