"""The usual implementations that `bench_peers.py` compares with: captum, shap, torchcam and plain loops."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import captum.attr
import numpy as np
import shap
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchcam.methods import ScoreCAM

from xaihub.masking import baseline_image, make_features

CELLS = 7  # of RISE's grid, per side


class Counting(nn.Module):
    """A network that counts rows."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.rows = network, 0

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the network's outputs."""
        self.rows += len(inputs)
        outputs: Tensor = self.network(inputs)
        return outputs


@dataclass
class Peer:
    """One usual implementation: `run(rows)` and a short `pilot(rows)`, by rows per pass."""

    name: str
    network: Counting
    run: Callable[[int], object]
    pilot: Callable[[int], object]


def peers(setup: Any, masks: int, layer: str, points: int, window: int) -> dict[str, Peer]:
    """Return the implementations for a model, by method, each with its own copy of the network as it was created."""
    model, inputs, target = setup.model, setup.inputs.contiguous(), setup.target
    network = Counting(copy.deepcopy(model.module).to(memory_format=torch.contiguous_format)).eval()
    grey, blur = (baseline_image(kind, model, inputs[0])[None] for kind in ("grey", "blur"))
    features = make_features("superpixels:50", model, inputs[0])
    segments = features.spread(torch.arange(features.count))[None, None].to(inputs.device)
    ready = inputs.repeat(16 if inputs.device.type == "cpu" else 256, 1, 1, 1)

    def pilot(rows: int) -> None:
        with torch.inference_mode():
            for start in range(0, len(ready), rows):
                network(ready[start : start + rows])

    def occlusion(rows: int) -> object:
        with torch.no_grad():
            return captum.attr.Occlusion(network).attribute(
                inputs, (3, window, window), strides=(3, window // 2, window // 2), baselines=grey, target=target,
                perturbations_per_eval=rows,
            )  # fmt: skip

    def kernel_shap(rows: int) -> object:
        with torch.no_grad():
            return captum.attr.KernelShap(network).attribute(
                inputs, baselines=grey, target=target, feature_mask=segments, n_samples=masks,
                perturbations_per_eval=rows,
            )  # fmt: skip

    def partition(rows: int) -> object:
        def scores(images: Any) -> Any:
            with torch.inference_mode():
                return network(torch.from_numpy(images).permute(0, 3, 1, 2).float().to(inputs.device)).cpu().numpy()

        image = inputs.permute(0, 2, 3, 1).cpu().numpy()
        masker = shap.maskers.Image(blur[0].permute(1, 2, 0).cpu().numpy(), image.shape[1:])
        explainer = shap.PartitionExplainer(scores, masker)
        return explainer(image, max_evals=masks, batch_size=rows, outputs=np.array([target]), silent=True)

    def score_cam(rows: int) -> object:
        reshape = model.layer(layer).to_grid
        with ScoreCAM(network, f"network.{layer}", batch_size=rows, reshape_transform=reshape) as extract:
            return extract(target, network(inputs))

    def curves(rows: int) -> object:
        return insertion_and_deletion(network, inputs, setup.heat, blur, target, points, rows)

    def loop(rows: int) -> object:
        return rise(network, inputs, target, masks, rows)

    runs: dict[str, tuple[str, Callable[[int], object]]] = {
        "RISE": ("plain loop", loop),
        "occlusion": ("captum", occlusion),
        "KernelSHAP": ("captum", kernel_shap),
        "partition SHAP": ("shap", partition),
        "insertion+deletion": ("plain loop", curves),
        "Score-CAM": ("torchcam", score_cam),
    }
    return {title: Peer(who, network, run, pilot) for title, (who, run) in runs.items()}


@torch.inference_mode()
def rise(network: nn.Module, inputs: Tensor, target: int, masks: int, rows: int) -> Tensor:
    """RISE as in its authors' repository: all masks first, then batches of masked images, then one product."""
    height, width = inputs.shape[-2:]
    up = -(-height // CELLS), -(-width // CELLS)
    grids = (torch.rand(masks, 1, CELLS, CELLS) < 0.5).float()
    large = interpolate(grids, size=((CELLS + 1) * up[0], (CELLS + 1) * up[1]), mode="bilinear", align_corners=False)
    shown = torch.empty(masks, 1, height, width)
    for number, (y, x) in enumerate(zip(torch.randint(up[0], (masks,)), torch.randint(up[1], (masks,)), strict=True)):
        shown[number] = large[number, :, y : y + height, x : x + width]
    scores = [network(part.to(inputs.device) * inputs).softmax(1)[:, target] for part in shown.split(rows)]
    return torch.einsum("n,nhw->hw", torch.cat(scores).cpu(), shown[:, 0]) / masks / 0.5


@torch.inference_mode()
def insertion_and_deletion(
    network: nn.Module, inputs: Tensor, heat: Tensor, baseline: Tensor, target: int, points: int, rows: int
) -> list[float]:
    """Both curves as in the repository of RISE: pixels are replaced in the order of the map, and batches evaluated."""
    order = heat.flatten().argsort(descending=True)
    areas = []
    for start, finish in ((baseline, inputs), (inputs, baseline)):
        scores, pixels, steps = [], start.flatten(2).clone(), order.tensor_split(points - 1)
        images = [pixels.clone()]
        for step in steps:
            pixels[..., step] = finish.flatten(2)[..., step]
            images.append(pixels.clone())
        for part in torch.cat(images).view(-1, *inputs.shape[1:]).split(rows):
            scores.append(network(part).softmax(1)[:, target])
        areas.append(float(torch.trapezoid(torch.cat(scores)) / points))
    return areas
