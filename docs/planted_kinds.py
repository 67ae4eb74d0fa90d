"""Images whose evidence is one cell, and for each kind of output a network that looks for exactly this evidence.

An image is grey with a red cell, which is the evidence, and a paler green one, which is evidence against it. The
networks compute the mean amount of red, green and blue above a threshold, and scores of it. `Cells` is convolutional;
`Tokens` attends from a class token to the patches, for methods that need attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import Resize

from xaihub import Case, Explainer, Explanation, Hints, Model, Preprocessing, ResolvedTarget, Scene, Target, TextEncoder
from xaihub.models.headed import FunctionHead
from xaihub.models.prompts import aimed

SIDE, CELLS = 32, 4
CELL = SIDE // CELLS
# Rows and columns of the red and the green cell. Two cells further down and to the right, the image is grey.
PLACES = (((1, 2), (3, 1)), ((2, 0), (0, 1)))
COLOURS = torch.eye(3) * 1.25 - 0.25  # grey noise stays below the threshold
NAMES = ("red", "green", "blue", "none")
THRESHOLD, GREEN = 0.2, 0.6
SCALE = 50.0  # a red cell then has a logit of about 4


class Cells(nn.Module):
    """Colours above the threshold per cell, and their mean: (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.AvgPool2d(CELL), _colours(), nn.ReLU())
        self.pool, self.flat = nn.AdaptiveAvgPool2d(1), nn.Flatten()

    def forward(self, inputs: Tensor) -> Any:
        """Return (B, 3) features."""
        return self.flat(self.pool(self.features(inputs)))


class Attention(nn.Module):
    """Attends to each token by its colours; with the attributes of timm's layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fused_attn, self.attn_drop = True, nn.Dropout(0.0)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (B, T, 3) mixtures of (B, T, 3) tokens."""
        scores = 2 * tokens.sum(2)[:, None, None].expand(-1, -1, tokens.shape[1], -1)
        mixed: Tensor = (self.attn_drop(scores.softmax(3)) @ tokens[:, None]).squeeze(1)
        return mixed


class Tokens(nn.Module):
    """Colours above the threshold as tokens, and what the class token attends to: (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.Sequential(nn.AvgPool2d(CELL), _colours(), nn.ReLU())
        self.attn = Attention()

    def forward(self, inputs: Tensor) -> Any:
        """Return (B, 3) features."""
        patches = self.cells(inputs).flatten(2).transpose(1, 2)
        tokens = torch.cat([torch.zeros_like(patches[:, :1]), patches], 1)
        return self.attn(tokens)[:, 0] / 7


def _colours() -> nn.Conv2d:
    layer = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        layer.weight.copy_(COLOURS[:, :, None, None])
        layer.bias.fill_(-THRESHOLD)  # type: ignore[union-attr]
    return layer


class Scores(nn.Module):
    """A network of features with a linear layer: each colour supports its own score and opposes the others."""

    def __init__(self, body: nn.Module, count: int, bias: float = 0.0) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(3, count)
        with torch.no_grad():
            weight = torch.eye(4, 3) * SCALE * 1.2 - torch.tensor([[0.2]] * 3 + [[0.0]]) * SCALE
            self.head.weight.copy_(weight[:count])
            self.head.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0])[:count] + bias)

    def forward(self, inputs: Tensor) -> Any:
        """Return (B, count) scores."""
        return self.head(self.body(inputs))


class Similar(nn.Module):
    """A network of features that are never 0, for cosine similarities."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, inputs: Tensor) -> Any:
        """Return (B, 4) features: the colours, and grey."""
        return nn.functional.pad(self.body(inputs), (0, 1), value=0.01) + 0.15


class Nested(Scores):
    """A network that returns a dictionary with a tuple in it."""

    def forward(self, inputs: Tensor) -> Any:
        """Return scores next to something else."""
        return {"scores": (super().forward(inputs), inputs.shape), "note": "anything"}


def redness(outputs: Any) -> Tensor:
    """The target of the kind "function"."""
    scores: Tensor = outputs["scores"][0]
    return scores[:, 0]


def _encode(texts: Sequence[str]) -> Tensor:
    return torch.eye(4)[[next((i for i, name in enumerate(NAMES) if name in text), 3) for text in texts]]


def _model(module: nn.Module, body: nn.Module, **values: Any) -> Model:
    torch.manual_seed(0)
    preprocessing = Preprocessing(
        spatial=[Resize((SIDE, SIDE))], size=(3, SIDE, SIDE), mean=(0.5,) * 3, std=(0.5,) * 3, description={}
    )
    hints = Hints(prefix_tokens=int(isinstance(body, Tokens)))
    return Model(module.eval(), name="planted", preprocessing=preprocessing, hints=hints, **values)


def _like(body: nn.Module) -> Model:
    red = torch.zeros(SIDE, SIDE, 3, dtype=torch.uint8)
    red[..., 0] = 255
    return aimed(_model(Similar(body), body, outputs="embedding"), like_images=[red.numpy()])


def _text(body: nn.Module) -> Model:
    encoder = TextEncoder(encode=_encode, scale=20.0)
    model = _model(Similar(body), body, outputs="embedding", text_encoder=encoder)
    return aimed(model, texts=["a red square", "a green square", "a blue square", "a grey image"])


# By the kind of its outputs: a model on either network.
KINDS: dict[str, Callable[[nn.Module], Model]] = {
    "multiclass": lambda body: _model(Scores(body, 4), body, classes=NAMES),
    "multilabel": lambda body: _model(Scores(body, 4, -2.0), body, classes=NAMES, outputs="multilabel"),
    "binary": lambda body: _model(Scores(body, 1, -2.0), body, classes=("red",), outputs="binary"),
    "regression": lambda body: _model(Scores(body, 1, 1.0), body, outputs="regression:mm"),
    "embedding (--like)": _like,
    "prompts (--text)": _text,
    "function": lambda body: _model(Nested(body, 1), body).with_head(FunctionHead(redness)),
}


@dataclass(kw_only=True)
class Planted:
    """A model, and an image with evidence in a known cell.

    Attributes:
        model: The model.
        image: (3, 32, 32) input.
        cell: The row and the column of the evidence.
    """

    model: Model
    image: Tensor
    cell: tuple[int, int]

    @property
    def truth(self) -> Tensor:
        """(32, 32) bool, the pixels of the evidence."""
        return _square(self.cell)

    def scene(self) -> Scene:
        """Return the scene that metrics see, with other images of the same kind as the pool."""
        logits = self.model.predict(self.image[None])
        target = Target().resolve(logits, self.model.outputs)
        others = torch.stack([image_of(((1, 1), (2, 2)), first) for first in (1, 2, 3, 1, 2, 3)])
        predicted = self.model.outputs.predicted(self.model.predict(others)).tolist()
        return Scene(model=self.model, image=self.image, logits=logits[0], target=target, truth=self.truth,
                     pool=list(zip(others, predicted, strict=True)))  # fmt: skip

    def points(self, explanation: Explanation) -> bool:
        """Whether the cell with the highest mean value is that of the evidence."""
        heat = nn.functional.avg_pool2d(explanation.heatmap()[None, None], CELL).flatten()
        return bool(heat.max() > heat.min()) and divmod(int(heat.argmax()), CELLS) == self.cell


def planted(kind: str, place: int = 0, *, tokens: bool = False) -> Planted:
    """Return a model of a kind, with one of the two images."""
    model = KINDS[kind](Tokens() if tokens else Cells())
    return Planted(model=model, image=image_of(PLACES[place]), cell=PLACES[place][0])


def image_of(places: Sequence[tuple[int, int]], first: int = 0) -> Tensor:
    """Return a (3, 32, 32) image in [-1, 1]: grey noise, one cell of the colour `first`, and a paler one of the next.

    With `first` = 3 there is none.
    """
    noise = torch.rand(1, SIDE, SIDE, generator=torch.Generator().manual_seed(first)) * 0.2 - 0.1
    image = noise.expand(3, -1, -1).clone()
    for number, (cell, strength) in enumerate(zip(places, (1.0, GREEN), strict=True) if first < 3 else ()):
        image[:, _square(cell)] = (COLOURS[(first + number) % 3].sign() * strength)[:, None]
    return image


def _square(cell: tuple[int, int]) -> Tensor:
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inside[cell[0] * CELL : (cell[0] + 1) * CELL, cell[1] * CELL : (cell[1] + 1) * CELL] = True
    return inside


class Exact(Explainer):
    """The drop in score without each cell, over its pixels; exact, because cells do not interact in linear networks."""

    completeness = True

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        """Return (B, 1, H, W) values."""
        cells = torch.eye(CELLS**2).view(-1, 1, CELLS, CELLS)
        shown = 1 - cells.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3).to(inputs)
        drops = []
        with torch.no_grad():
            for row in range(len(inputs)):
                own = target[row : row + 1]
                scores = own.score(model(torch.cat([inputs[row : row + 1], inputs[row : row + 1] * shown])))
                drops.append((scores[0] - scores[1:]).view(1, CELLS, CELLS) / CELL**2)
        return torch.stack(drops).repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)


class Noise(Explainer):
    """Another random map for each image: robust to nothing."""

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:  # noqa: ARG002
        """Return (B, 1, H, W) values."""
        seeds = [int(row.double().abs().sum() * 1e6) % 2**31 for row in inputs]
        return torch.stack(
            [torch.rand(1, *inputs.shape[2:], generator=torch.Generator().manual_seed(s)) for s in seeds]
        )


class Blind(Explainer):
    """The brightness of the image, whatever the network."""

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:  # noqa: ARG002
        """Return (B, 1, H, W) values."""
        return inputs.abs().mean(1, keepdim=True)


def case(explainer: Explainer, scene: Scene) -> Case:
    """Return the case of an explainer's map."""
    (explanation,) = explainer.explain(
        scene.model, scene.image[None], scene.target.fixed(), logits=scene.logits[None]
    )  # fmt: skip
    return Case(scene=scene, explanation=explanation, explainer=explainer)


def changed(given: Case, change: Callable[[Tensor], Tensor] = lambda values: values, **metadata: Any) -> Case:
    """Return the case with another map, and with other entries of its record; sets of pixels are moved with the map."""
    found = given.explanation
    sets = tuple(replace(one, mask=moved(one.mask)) for one in found.sets) if change is moved else found.sets
    record = {**found.metadata, **metadata}
    explanation = replace(found, values=change(found.values), sets=sets, metadata=record)
    return replace(given, explanation=explanation, memory=type(given.memory)())


def moved(values: Tensor) -> Tensor:
    """Return a map two cells further down and to the right, where the image is grey."""
    return values.roll((2 * CELL, 2 * CELL), (-2, -1))
