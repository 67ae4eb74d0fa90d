"""What an explanation holds: an attribution map, the classes it is about, and its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from xaihub.errors import OutputError
from xaihub.explainers.pixel_set import PixelSet
from xaihub.explainers.target import ResolvedTarget
from xaihub.models.preprocessing import Geometry

if TYPE_CHECKING:
    from xaihub.images import SourceImage


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One output as the model scored it.

    Attributes:
        index: Its position; of several classes, that of the first.
        name: Its name.
        logit: The logit of a class or label; of several, the mean; None for a value.
        probability: Softmax or sigmoid of the logit, by the kind of the outputs; None for a value.
        value: The value of a regression, similarity or feature; None for a class.
        unit: The unit of the value.
    """

    index: int
    name: str
    logit: float | None = None
    probability: float | None = None
    value: float | None = None
    unit: str = ""

    @classmethod
    def of(cls, outputs: Tensor, target: ResolvedTarget, classes: Sequence[str]) -> ClassScore:
        """Score (1, K) outputs for a target that is not a contrast."""
        meaning, count = target.outputs, outputs.shape[1]
        names = [meaning.name(int(part), tuple(classes), count) for part in target.parts]
        name, index = " + ".join(names), int(target.index)
        up = replace(target, down=False)
        if not meaning.classify:
            name = f"lower {name}" if target.down else name
            return cls(index=index, name=name, value=float(up.score(outputs)), unit=meaning.unit)
        return cls(
            index=index,
            name=name,
            logit=float(up.score(outputs)),
            probability=float(up.score(outputs, output="probability")),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes that this kind of output has."""
        kept = ("index", "name", "logit", "probability") if self.value is None else ("index", "name", "value", "unit")
        return {name: getattr(self, name) for name in kept}

    def __str__(self) -> str:
        """Name, and probability in percent or value with its unit."""
        if self.value is not None:
            return f"{self.name} {self.value:.4g} {self.unit}".rstrip()
        return self.name if self.probability is None else f"{self.name} {self.probability:.1%}"


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

    def __repr__(self) -> str:
        """One line: the claim, who made it, the shape of the values, and the claims of the sets."""
        who = f"{self.explainer or 'unknown explainer'} of {self.model or 'unknown model'}"
        sets = "".join(f", {one.role} set: {one.claim}" for one in self.sets[:3])
        return f"<{type(self).__name__} {self.claim!r}, {who}, values {tuple(self.values.shape)}{sets}>"

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
        """What was explained, as text: a class with its probability, a value, or one class rather than another."""
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
