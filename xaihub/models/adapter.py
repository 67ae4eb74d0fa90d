"""Model adapters: the base class of a source of architectures, and the requests that it builds models from."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xaihub.errors import ModelError
from xaihub.files import inside, read_file
from xaihub.models.outputs import Outputs
from xaihub.specs import ModelCard

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from xaihub.models.model import Model

LARGEST = 4_000_000  # bytes of a file of class names
# In the names and messages of what hubs' clients raise without a connection.
_OFFLINE = ("connect", "offline", "resolve", "localentrynotfound", "timeout", "timed out", "max retries")


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """A request for a model, with its name resolved to a card.

    Attributes:
        name: The name as typed.
        card: The card of the zoo, or one created from the name.
        checkpoint: A local weights file that replaces the card's weights.
        classes: Class names that replace the card's.
        options: Extra keyword arguments for the architecture's constructor.
        outputs: What the outputs mean, instead of what the card declares; see `Outputs.parse`.
    """

    name: str
    card: ModelCard
    checkpoint: str | None = None
    classes: tuple[str, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    outputs: str = ""

    @property
    def declared(self) -> Outputs | None:
        """What the user or the card declares of the outputs, or None.

        Raises:
            ParameterError: It is not a kind of outputs.
        """
        text = self.outputs or self.card.outputs
        return Outputs.parse(text) if text else None

    def class_names(self) -> tuple[str, ...] | None:
        """Return the class names given by the user or the card, or None for the model's own.

        Raises:
            ModelError: The card's file of class names cannot be read.
        """
        if self.classes is not None:
            return self.classes
        given = self.card.classes
        if isinstance(given, tuple):
            return given
        if given == "imagenet-1k":
            return None
        return read_classes(inside(self.card.base, given, who=f"model card {self.card.name!r}", error=ModelError))

    def weights_file(self) -> Path | None:
        """Return the checkpoint, or the file that the card names; None if the adapter has to provide the weights.

        Raises:
            MissingExtra: The package with the weights is not installed.
            ModelError: The file does not exist, or its checksum differs from the card's.
        """
        from xaihub.models.weights import weights_file

        if self.checkpoint is not None:
            return Path(self.checkpoint)
        return weights_file(self.card) if self.card.weights.source in ("package", "file") else None

    def weights(self) -> tuple[dict[str, Tensor] | None, str]:
        """Return the weights of the checkpoint or the card, with their name for messages.

        They are None if the adapter has to provide them. Raises as `weights_file` and `read_weights`.
        """
        from xaihub.models.weights import read_weights

        file = self.weights_file()
        if file is None:
            return None, ""
        if self.checkpoint is not None:
            return read_weights(self.checkpoint), f"checkpoint {self.checkpoint!r}"
        return read_weights(file), f"the weights file of {self.card.name!r}"

    def num_classes(self) -> int | None:
        """Return the number of outputs requested by the user or the card, or None.

        Raises:
            ModelError: The card's file of class names cannot be read.
        """
        names = self.class_names()
        if self.card.num_classes is None and self.declared is not None and self.declared.kind == "binary":
            return 1  # whatever the number of names
        return self.card.num_classes if names is None else len(names)


def read_classes(given: str | os.PathLike[str] | Sequence[str]) -> tuple[str, ...]:
    """Return class names: those of a sequence, or of a text file with one per line.

    Raises:
        ModelError: The file cannot be read, or there are no names, or they are not text.
    """
    if not isinstance(given, (str, os.PathLike)):
        if not isinstance(given, (list, tuple)) or not given or not all(isinstance(name, str) for name in given):
            raise ModelError(f"classes are no list of names, and no file with one per line: {given!r:.60}")
        return tuple(given)
    path = given
    data = read_file(path, what="file of class names", error=ModelError, limit=LARGEST)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelError(f"cannot read the class names in {os.fspath(path)!r}: it is not UTF-8 text") from error
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not names:
        raise ModelError(f"there are no class names in {os.fspath(path)!r}", hint="write one name per line")
    return names


class ModelAdapter(ABC):
    """One source of architectures: recognises its own names and builds a `Model` from a card.

    Attributes:
        examples: Small architectures that `xaihub plugins check` may build with random weights.

    Example::

        class MyAdapter(ModelAdapter):
            def knows(self, name):
                return name.startswith("mine/")

            def build(self, request, device):
                return Model(my_network(), name=request.name, preprocessing=...)
    """

    examples: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def knows(self, name: str) -> bool:
        """Whether `name` is an architecture of this source; must be fast and need no network access."""

    def rooted(self, name: str) -> str:
        """Return a name that this adapter knows such that it means the same from any folder.

        Override it if names may contain relative paths: runs store what it returns; see `xaihub.files.rooted`.
        """
        return name

    @abstractmethod
    def build(self, request: ModelRequest, device: torch.device) -> Model:
        """Build the model that the request describes.

        Raises:
            ModelError: It cannot be built; the message gives the reason and what to do.
        """

    @staticmethod
    @contextmanager
    def downloading(name: str, *, asks_hub: bool = True) -> Iterator[None]:
        """Let a library ask the Hugging Face hub for `name` inside; without a connection only its cache is used.

        Its client would try each of several files six times, which takes almost a minute when offline.

        Raises:
            ModelError: There is no connection, and the cache does not have the files.
        """
        from huggingface_hub import constants, get_session

        offline = constants.HF_HUB_OFFLINE
        if asks_hub and not offline:
            try:
                get_session().head(constants.ENDPOINT, timeout=5)
            except Exception:  # errors of requests or httpx, depending on the client's version
                constants.HF_HUB_OFFLINE = True
        try:
            yield
        except Exception as error:  # libraries raise many types
            chain = [error, error.__cause__, error.__context__]
            kinds = " ".join(f"{type(item).__name__} {item}" for item in chain if item is not None).lower()
            if isinstance(error, ModelError) or not asks_hub or not any(word in kinds for word in _OFFLINE):
                raise
            raise ModelError(
                f"the weights of {name!r} cannot be downloaded: no connection to the hub",
                hint="go online, pass --checkpoint FILE, or use an offline model from 'xaihub list models'",
            ) from error
        finally:
            constants.HF_HUB_OFFLINE = offline

    def names(self, pattern: str = "*") -> list[str]:  # noqa: ARG002 - the argument of its overrides
        """Return the architectures whose names match a glob pattern."""
        return []
