"""What makes a model: requests, and the adapters that know a source of architectures."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xaihub.errors import ModelError
from xaihub.specs import ModelCard

if TYPE_CHECKING:
    import torch

    from xaihub.models.model import Model

__all__ = ["ModelAdapter", "ModelRequest", "read_classes"]


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """What a user asked for, resolved as far as names go.

    Attributes:
        name: The name as typed.
        card: The zoo's card, or one made from the name.
        checkpoint: A local weights file that replaces the card's weights.
        classes: Class names that replace the card's.
        options: Extra keyword arguments for the architecture's constructor.
    """

    name: str
    card: ModelCard
    checkpoint: str | None = None
    classes: tuple[str, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def class_names(self) -> tuple[str, ...] | None:
        """Return the class names that the user or the card gives; None means the model's own.

        Raises:
            ModelError: The card's file of class names cannot be read.
        """
        if self.classes is not None:
            return self.classes
        given = self.card.classes
        if isinstance(given, tuple):
            return given
        return None if given == "imagenet-1k" else read_classes(Path(self.card.base) / given)

    def num_classes(self) -> int | None:
        """Return the number of outputs that the user or the card asks for, or None.

        Raises:
            ModelError: The card's file of class names cannot be read.
        """
        names = self.class_names()
        return self.card.num_classes if names is None else len(names)


def read_classes(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read class names from a text file, one a line.

    Raises:
        ModelError: The file cannot be read, or has no names.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ModelError(f"cannot read the class names of {os.fspath(path)!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"cannot read the class names of {os.fspath(path)!r}: it is not UTF-8 text") from error
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not names:
        raise ModelError(f"there are no class names in {os.fspath(path)!r}", hint="write one a line")
    return names


class ModelAdapter(ABC):
    """One source of architectures: knows which names are its own, and builds a `Model` from a card.

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
        """Tell whether `name` is an architecture of this source; cheap, without network access."""

    @abstractmethod
    def build(self, request: ModelRequest, device: torch.device) -> Model:
        """Build the model that the request describes.

        Raises:
            ModelError: It cannot be built; one sentence says why and what to do.
        """

    def names(self, pattern: str = "*") -> list[str]:  # noqa: ARG002 - the argument of its overrides
        """Return the architectures whose names match a glob pattern."""
        return []
