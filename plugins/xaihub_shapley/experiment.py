"""Small networks, trained and judged against exact Shapley values: what the reproduction and the tests run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from xaihub import ExplainerRefused, Hints, Model, Preprocessing, Step, get_explainer
from xaihub.masking import every_coalition, shapley_weights
from xaihub_shapley.images import CELLS, SIDE, LabelledImages, Task, make_images
from xaihub_shapley.network import ShapleyVision
from xaihub_shapley.objective import ShapleyObjective
from xaihub_shapley.own import make_own_masking

__all__ = [
    "METHODS",
    "Agreement",
    "Curves",
    "Setting",
    "accuracy",
    "agreement",
    "curves",
    "exact_shapley",
    "maps_of",
    "pointing",
    "run",
    "small_model",
    "train",
]

Kind = Literal["vit", "resnet"]
METHODS = (
    "shapley", "shapley_values", "gradcam", "integrated_gradients", "rise", "attention_rollout", "control_random",
)  # fmt: skip
# Layers before the last: at the head's own layer Grad-CAM is the positive part of the votes.
_EARLIER = {"vit": "blocks.1", "resnet": "layer3"}


def small_model(kind: Kind, classes: int, *, seed: int) -> Model:
    """Return a small network for 24 by 24 grey images: a ViT of 3 blocks, or timm's test ResNet, on 3 x 3 cells."""
    import timm

    torch.manual_seed(seed)
    if kind == "vit":
        module = timm.create_model(
            "vit_tiny_patch16_224", img_size=SIDE, patch_size=SIDE // CELLS, embed_dim=64, depth=3, num_heads=4,
            in_chans=1, num_classes=classes,
        )  # fmt: skip
    else:
        module = timm.create_model("test_resnet", in_chans=1, num_classes=classes, output_stride=8)
    model = Model(
        module,
        name=kind,
        preprocessing=Preprocessing(spatial=(), size=(1, SIDE, SIDE), mean=(0.0,), std=(1.0,)),
        classes=[str(index) for index in range(classes)],
        hints=Hints(prefix_tokens=int(kind == "vit")),
    )
    model.baselines = {"own_masking": lambda: make_own_masking}
    return model


def train(
    model: Model,
    objective: ShapleyObjective,
    images: LabelledImages,
    *,
    epochs: int,
    seed: int,
    lr: float = 1e-3,
    batch: int = 64,
) -> Model:
    """Train a model in place by AdamW with one cycle, and return it around the network that votes patch by patch."""
    network = objective.wrap(model)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.05)
    total = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(total, 1))
    network.train().requires_grad_(True)
    number = 0
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for rows in order[: len(order) // batch * batch].split(batch):
            step = Step(number=number, total=total, generator=generator)
            losses = objective.loss(network, images.inputs[rows], images.labels[rows], step)
            optimizer.zero_grad()
            losses.total.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            number += 1
    network.eval().requires_grad_(False)
    return model.around(network)


def accuracy(model: Model, images: LabelledImages) -> float:
    """Return the share of right predictions."""
    with torch.inference_mode():
        return float((model.module(images.inputs).argmax(1) == images.labels).float().mean())


@torch.inference_mode()
def exact_shapley(network: ShapleyVision, image: Tensor) -> Tensor:
    """Return the (N, K) Shapley values of a (C, H, W) image from all 2^N coalitions; N up to about 12."""
    found = every_coalition(network.cells)
    rows = image.expand(len(found), -1, -1, -1)
    values = torch.cat([network(x, s) for x, s in zip(rows.split(512), found.shown.split(512), strict=True)])
    return shapley_weights(found.shown, found.log_expected, adjust=False).T @ values.double()


@dataclass(frozen=True)
class Agreement:
    """Votes against exact Shapley values: mean correlation for the predicted class, and R2 over all classes."""

    correlation: float
    r2: float


def agreement(model: Model, images: LabelledImages, count: int) -> Agreement:
    """Compare the votes of the first `count` images with enumeration."""
    network = _network(model)
    with torch.inference_mode():
        phi = network.phi(images.inputs[:count]).double()
    exact = torch.stack([exact_shapley(network, image) for image in images.inputs[:count]])
    top = phi.sum(1).argmax(1)
    rows = torch.arange(count)
    pairs = torch.stack([phi[rows, :, top], exact[rows, :, top]], 1)  # (n, 2, N)
    centred = pairs - pairs.mean(2, keepdim=True)
    size = centred.norm(dim=2).clamp(min=1e-12)
    correlation = (centred.prod(1).sum(1) / size.prod(1)).mean()
    r2 = 1 - (phi - exact).square().sum() / (exact - exact.mean()).square().sum()
    return Agreement(float(correlation), float(r2))


@dataclass(frozen=True)
class Curves:
    """Means over images of the area under p when the best cells go first, or come first, and of the drop."""

    deletion: float
    insertion: float
    aopc: float


@torch.inference_mode()
def curves(model: Model, images: LabelledImages, cells: Tensor) -> Curves:
    """Judge (n, N) maps by the probability of the predicted class, under the network's own way to hide cells."""
    network = _network(model)
    inputs = images.inputs[: len(cells)]
    top = network(inputs).argmax(1)
    place = cells.argsort(1, descending=True).argsort(1)  # 0 for the best
    kept = torch.stack([(place >= step) for step in range(network.cells + 1)], 1).float()  # (n, N + 1, N)
    deletion = _probabilities(network, inputs, kept, top)
    insertion = _probabilities(network, inputs, 1 - kept, top)
    drop = (deletion[:, :1] - deletion[:, 1:-1]).mean()
    return Curves(_area(deletion), _area(insertion), float(drop))


def pointing(cells: Tensor, evidence: Tensor) -> tuple[float, float]:
    """Return the share of (n, N) maps whose best cell is evidence, and evidence's share of all that is positive."""
    hit = evidence.gather(1, cells.argmax(1, keepdim=True)).double().mean()
    positive = cells.clamp(min=0).double()
    energy = ((positive * evidence).sum(1) / positive.sum(1).clamp(min=1e-12)).mean()
    return float(hit), float(energy)


def maps_of(name: str, model: Model, kind: Kind, inputs: Tensor, *, seed: int = 0) -> Tensor | None:
    """Return the (n, N) sums over cells of an explainer's maps for the predicted class; None where it refuses."""
    chosen: dict[str, dict[str, Any]] = {
        "gradcam": {"layer": f"backbone.{_EARLIER[kind]}"},
        "integrated_gradients": {"baseline": "zero"},
        "rise": {"masks": 500, "cell": CELLS},
        "shapley": {"every_class": False},
        "shapley_values": {"features": f"grid:{CELLS}", "baseline": "own_masking"},
    }
    try:
        found = get_explainer(name, **chosen.get(name, {})).explain(model, inputs, seed=seed)
    except ExplainerRefused:
        return None
    heat = torch.stack([explanation.values.sum(0) for explanation in found])  # (n, H, W)
    return nn.functional.adaptive_avg_pool2d(heat.unsqueeze(1), CELLS).flatten(1)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of the reproduction: images, network, weight of the Shapley loss (0 for the plain twin), effort.

    `votes` is the weight of the loss that teaches the votes only.
    """

    task: Task
    kind: Kind
    weight: float
    epochs: int
    lr: float
    images: int
    judged: int
    votes: float = 0.0


def run(setting: Setting, *, seed: int) -> dict[str, dict[str, float]]:
    """Train one network and return figures by method; a method that refused has none."""
    images = make_images(setting.task, setting.images, train=True, seed=seed)
    unseen = make_images(setting.task, 400, train=False, seed=seed)
    mask: Literal["attention", "pixel"] = "attention" if setting.kind == "vit" else "pixel"
    objective = ShapleyObjective(lambda_=setting.weight, mask=mask, votes_lambda=setting.votes)
    model = small_model(setting.kind, images.classes, seed=seed)
    model = train(model, objective, images, epochs=setting.epochs, seed=seed, lr=setting.lr)
    own = {"accuracy": accuracy(model, unseen), **asdict(agreement(model, unseen, setting.judged))}
    found: dict[str, dict[str, float]] = {}
    evidence = unseen.evidence[: setting.judged]
    for method in METHODS:
        cells = maps_of(method, model, setting.kind, unseen.inputs[: setting.judged], seed=seed)
        found[method] = own if method == "shapley" else {}
        if cells is not None:
            found[method] = {**found[method], **asdict(curves(model, unseen, cells))}
            if not bool(evidence.all()):
                found[method] |= dict(zip(("hit", "energy"), pointing(cells, evidence), strict=True))
    return found


def _probabilities(network: ShapleyVision, inputs: Tensor, shown: Tensor, top: Tensor) -> Tensor:
    """Return (n, steps) probabilities of the predicted class."""
    steps = shown.shape[1]
    logits = network(inputs.repeat_interleave(steps, 0), shown.flatten(0, 1)).unflatten(0, (-1, steps))
    return logits.double().softmax(2)[torch.arange(len(inputs)), :, top]  # type: ignore[no-any-return]


def _area(curve: Tensor) -> float:
    return float(torch.trapezoid(curve, dim=1).mean() / (curve.shape[1] - 1))


def _network(model: Model) -> ShapleyVision:
    if not isinstance(model.module, ShapleyVision):
        raise TypeError("a network that votes patch by patch is expected")
    return model.module
