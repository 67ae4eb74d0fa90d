"""keep-p at 0.5 on a network with kinks and on smooth ones: do two seeds agree, and is it better than chance?

    python tests/benchmarks/bench_measure_smoke.py --images 20 --masks 2000

Networks are small ones of timm with random weights, and images are crops of the sample photo (or of `--photos`), so
the figures say that the method works, not that a network is understood. Maps of two seeds are correlated; insertion
minus deletion is compared with random values on the same regions. The same seed must give the same map.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from torch import Tensor

import xaihub
from xaihub import Case, Explanation, Metric, Model, Preprocessing, Scene, Target
from xaihub_first_principles.method import FirstPrinciples

NAMES = ("test_resnet", "test_vit", "test_efficientnet")  # ReLU, GELU with attention, SiLU


def main() -> None:
    """Print one line a network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--masks", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    hub = xaihub.Hub()
    metrics = [hub.get_metric("insertion", steps=14), hub.get_metric("deletion", steps=14, baseline="blur")]
    print("| network | images | correlation of two seeds | keep-p | random patches | better on |")
    print("|---|---|---|---|---|---|")
    for name in NAMES:
        model = make(name)
        explainer = FirstPrinciples(features="grid:7", budget=options.masks, tolerance=0, shifts=1)
        correlations, gaps = [], []
        for number, image in enumerate(crops(model, options)):
            first, second = (explainer.explain(model, image[None], seed=seed)[0].heatmap() for seed in (0, 1))
            if number == 0 and not torch.equal(first, explainer.explain(model, image[None], seed=0)[0].heatmap()):
                raise SystemExit(f"{name}: the same seed gave another map")
            correlations.append(float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]))
            patches = torch.rand(7, 7, generator=torch.Generator().manual_seed(number))
            chance = torch.nn.functional.interpolate(patches[None, None], size=first.shape, mode="bilinear")[0, 0]
            gaps.append([judge(model, image, heat, metrics) for heat in (first, chance)])
        scores = torch.tensor(gaps)
        better = int((scores[:, 0] > scores[:, 1]).sum())
        print(
            f"| {name} | {len(gaps)} | {min(correlations):.3f} at least, mean {sum(correlations) / len(gaps):.3f}"
            f" | {float(scores[:, 0].mean()):.4f} | {float(scores[:, 1].mean()):.4f} | {better} |",
            flush=True,
        )


def make(name: str) -> Model:
    """Return a network with random weights whose probabilities are not all alike."""
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=5)
    for part in net.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr, operator]
            part.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
    channels, side, _ = net.pretrained_cfg["input_size"]
    plain = Preprocessing(spatial=(), size=(channels, side, side), mean=(0.5,) * 3, std=(0.25,) * 3)
    return Model(net, name=name, preprocessing=plain)


def crops(model: Model, options: argparse.Namespace) -> list[Tensor]:
    """Return images as inputs: photos shrunk, or random crops of the sample photo."""
    side = model.input_size[1]
    if options.photos is not None and options.photos.is_dir():
        files = sorted(options.photos.iterdir())[: options.images]
        images = [xaihub.load_image(file).rgb.convert("RGB").resize((side, side)) for file in files]
    else:
        whole = xaihub.load_image(xaihub.sample_photo()).rgb.convert("RGB")
        generator = torch.Generator().manual_seed(0)
        images = []
        for _ in range(options.images):
            share = 0.3 + 0.6 * float(torch.rand((), generator=generator))
            width, height = int(whole.width * share), int(whole.height * share)
            left = int(torch.randint(0, whole.width - width, (), generator=generator))
            top = int(torch.randint(0, whole.height - height, (), generator=generator))
            images.append(whole.crop((left, top, left + width, top + height)).resize((side, side)))
    return [model.prepare(image)[0] for image in images]


def judge(model: Model, image: Tensor, heat: Tensor, metrics: list[Metric]) -> float:
    """Return insertion minus deletion."""
    logits = model.predict(image[None])
    target = Target().resolve(logits)
    explanation = Explanation.of_row(
        0, values=heat[None, None].float(), logits=logits, target=target, classes=model.classes, metadata={}
    )
    case = Case(scene=Scene(model=model, image=image, logits=logits[0], target=target), explanation=explanation)
    insertion, deletion = (metric.measure(case)[0].value for metric in metrics)
    return insertion - deletion


if __name__ == "__main__":
    main()
