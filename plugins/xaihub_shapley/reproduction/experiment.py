"""Small networks, trained and evaluated against exact Shapley values: what the reproduction and the tests run."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from xaihub import ExplainerRefused, Hints, Model, Preprocessing, Step, class_scores, get_explainer
from xaihub.masking import every_coalition, shapley_weights
from xaihub_shapley.network import ShapleyVision
from xaihub_shapley.objective import ShapleyObjective
from xaihub_shapley.reproduction.images import CELLS, SIDE, LabelledImages, Task, make_images
from xaihub_shapley.self_explaining import make_own_masking

Kind = Literal["vit", "resnet"]
METHODS = (
    "shapley", "shapley_values", "gradcam", "integrated_gradients", "rise", "attention_rollout", "control_random",
)  # fmt: skip


def small_model(kind: Kind, classes: int, *, seed: int, depth: int = 3) -> Model:
    """Return a small network for 24 x 24 grey images in 3 x 3 patches: a ViT of `depth` blocks, or test_resnet."""
    import timm

    torch.manual_seed(seed)
    if kind == "vit":
        module = timm.create_model(
            "vit_tiny_patch16_224", img_size=SIDE, patch_size=SIDE // CELLS, embed_dim=64, depth=depth, num_heads=4,
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
    """Train a model in place by AdamW with a one-cycle schedule, and return it with the network that scores patches."""
    network = objective.wrap(model)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.05)
    total = epochs * (len(images.labels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(total, 1))
    network.train().requires_grad_(True)
    number = 0
    for _ in range(epochs):
        order = torch.randperm(len(images.labels), generator=generator)
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
    """Return the fraction of correct predictions."""
    with torch.inference_mode():
        return float((model.module(images.inputs).argmax(1) == images.labels).float().mean())


@torch.inference_mode()
def exact_shapley(network: ShapleyVision, image: Tensor) -> Tensor:
    """Return the (N, K) Shapley values of a (C, H, W) image from all 2^N coalitions; feasible up to N of about 12."""
    found = every_coalition(network.cells)
    rows = image.expand(len(found), -1, -1, -1)
    values = torch.cat([network(x, s) for x, s in zip(rows.split(512), found.shown.split(512), strict=True)])
    return shapley_weights(found.shown, found.log_expected, adjust=False).T @ values.double()


class Agreement(NamedTuple):
    """Patch scores against exact Shapley values: mean correlation for the predicted class, and R2 over all classes."""

    correlation: float
    r2: float


def agreement(model: Model, images: LabelledImages, count: int) -> Agreement:
    """Compare the patch scores of the first `count` images with enumeration."""
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


class Curves(NamedTuple):
    """Means over images: areas under the deletion and insertion curves of the probability, and its mean drop."""

    deletion: float
    insertion: float
    aopc: float


@torch.inference_mode()
def curves(model: Model, images: LabelledImages, cells: Tensor) -> Curves:
    """Evaluate (n, N) maps by the probability of the predicted class under the network's own masking."""
    network = _network(model)
    inputs = images.inputs[: len(cells)]
    top = network(inputs).argmax(1)
    place = cells.argsort(1, descending=True).argsort(1)  # 0 for the highest score
    kept = torch.stack([(place >= step) for step in range(network.cells + 1)], 1).float()  # (n, N + 1, N)
    deletion = _probabilities(network, inputs, kept, top)
    insertion = _probabilities(network, inputs, 1 - kept, top)
    drop = (deletion[:, :1] - deletion[:, 1:-1]).mean()
    return Curves(_area(deletion), _area(insertion), float(drop))


def pointing(cells: Tensor, evidence: Tensor) -> tuple[float, float]:
    """Return the fraction of (n, N) maps whose maximum is evidence, and evidence's fraction of positive attribution."""
    hit = evidence.gather(1, cells.argmax(1, keepdim=True)).double().mean()
    positive = cells.clamp(min=0).double()
    energy = ((positive * evidence).sum(1) / positive.sum(1).clamp(min=1e-12)).mean()
    return float(hit), float(energy)


def maps_of(name: str, model: Model, kind: Kind, inputs: Tensor, *, seed: int = 0) -> Tensor | None:
    """Return the (n, N) means over cells of an explainer's maps for the predicted class; None where it refuses."""
    backbone: Any = _network(model).backbone
    # The layer before the last: at the head's own layer Grad-CAM is the positive part of the patch scores.
    earlier = f"blocks.{len(backbone.blocks) - 2}" if kind == "vit" else "layer3"
    chosen: dict[str, dict[str, Any]] = {
        "gradcam": {"layer": f"backbone.{earlier}"},
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


def run(
    task: Task,
    kind: Kind,
    weight: float,
    *,
    votes: float = 0,
    seed: int,
    epochs: int,
    lr: float,
    images: int,
    judged: int,
) -> dict[str, dict[str, float]]:
    """Train one network and return figures by method, over `judged` test images; a method that refused has none.

    `weight` is lambda, 0 for the baseline model; `votes` is the weight of the loss that trains patch scores only.
    """
    known = make_images(task, images, train=True, seed=seed)
    unseen = make_images(task, 400, train=False, seed=seed)
    mask: Literal["attention", "pixel"] = "attention" if kind == "vit" else "pixel"
    objective = ShapleyObjective(lambda_=weight, mask=mask, votes_lambda=votes)
    model = small_model(kind, known.classes, seed=seed)
    model = train(model, objective, known, epochs=epochs, seed=seed, lr=lr)
    found: dict[str, dict[str, float]] = {method: {} for method in METHODS}
    found["shapley"] = {"accuracy": accuracy(model, unseen), **agreement(model, unseen, judged)._asdict()}
    evidence = unseen.evidence[:judged]
    for method, figures in found.items():
        cells = maps_of(method, model, kind, unseen.inputs[:judged], seed=seed)
        if cells is not None:
            figures |= curves(model, unseen, cells)._asdict()
            if not bool(evidence.all()):
                figures["hit"], figures["energy"] = pointing(cells, evidence)
    return found


def _probabilities(network: ShapleyVision, inputs: Tensor, shown: Tensor, top: Tensor) -> Tensor:
    """Return (n, steps) probabilities of the predicted class."""
    steps = shown.shape[1]
    logits = network(inputs.repeat_interleave(steps, 0), shown.flatten(0, 1))
    found: Tensor = class_scores(logits.double(), "probability").unflatten(0, (-1, steps))
    return found[torch.arange(len(inputs)), :, top]


def _area(curve: Tensor) -> float:
    return float(torch.trapezoid(curve, dim=1).mean() / (curve.shape[1] - 1))


def _network(model: Model) -> ShapleyVision:
    if not isinstance(model.module, ShapleyVision):
        raise TypeError("the model's network must be a ShapleyVision")
    return model.module
