"""What an explanation holds: an attribution map, the classes it is about, and its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from xaihub.errors import OutputError
from xaihub.explainers.pixel_set import PixelSet
from xaihub.models.preprocessing import Geometry

if TYPE_CHECKING:
    from xaihub.images import SourceImage


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One class as the model scored it: index, name, logit, and softmax probability."""

    index: int
    name: str
    logit: float
    probability: float

    def __str__(self) -> str:
        """Name and probability in percent."""
        return f"{self.name} {self.probability:.1%}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """The data of an `Explanation`, which adds saving and drawing; it has the same attributes."""

    values: Tensor
    target: ClassScore
    against: ClassScore | None = None
    predicted: ClassScore
    metadata: Mapping[str, Any] = field(default_factory=dict)
    geometry: Geometry | None = None
    sets: tuple[PixelSet, ...] = ()
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    image: SourceImage | None = None

    @property
    def explainer(self) -> str:
        """The explainer's name."""
        return str(self.metadata.get("explainer", ""))

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.metadata.get("model", ""))

    @property
    def claim(self) -> str:
        """What was explained, as text: the class with its probability, or one class rather than another."""
        if self.against is None:
            return str(self.target)
        return f"{self.target} rather than {self.against}"

    @property
    def warnings(self) -> list[str]:
        """What the reader of the map must know."""
        return list(self.metadata.get("warnings", []))

    def heatmap(self, *, original: bool = False) -> Tensor:
        """Return the values summed over channels, (H, W), at the size of the input or of the original image.

        In the original's geometry, pixels outside the model's input are NaN.

        Raises:
            OutputError: `original` is true and the geometry is unknown.
        """
        flat = self.values.sum(0)
        if not original:
            return flat
        if self.geometry is None:
            raise OutputError("the original image's geometry is unknown", hint="explain an image, not a tensor")
        return self.geometry.to_original(flat)
