"""Time Grad-CAM here, in torchcam and in pytorch-grad-cam on the same network, layer and class.

Run `python tests/benchmarks/bench_cam.py`. Repeats of the three are interleaved and CPU time is compared by medians, so
that other work on the machine disturbs all of them alike. What is timed:

- method: from the known class to the map at the size of the image; one forward and one backward pass each.
- whole: from the image without a class to the map. `explain` finds and checks the class scores in a pass of its own,
  and keeps a record; the two libraries take the class from the pass that makes the map.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from pytorch_grad_cam import GradCAM as PeerGradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor
from torch.nn.functional import interpolate
from torchcam.methods import GradCAM as TorchcamGradCAM

import xaihub


def medians(runs: dict[str, Callable[[], object]], repeats: int, prepare: Callable[[str], object]) -> dict[str, float]:
    """Return the median CPU seconds of each run, without its preparation; the first round only warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            prepare(name)
            started = time.process_time()
            run()
            if repeat:
                seconds[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Print the medians and their ratios to torchcam's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    model = xaihub.load_model(options.model, device="cpu")
    explainer = xaihub.get_explainer("gradcam")
    layer = model.layer()
    torch.manual_seed(0)
    inputs = torch.randn(options.batch, *model.input_size)
    size = inputs.shape[2:]
    classes = model.predict(inputs).argmax(1).tolist()
    target = xaihub.Target(index=classes[0]).resolve(model.predict(inputs))
    # The same memory order as `Model` uses, or the difference would be the order's.
    inputs = inputs.contiguous(memory_format=torch.channels_last)

    def bare() -> Tensor:
        with torch.inference_mode():
            return model.module(inputs)

    def ours() -> object:
        return explainer.attribute(model, inputs.clone(), target)

    def through_torchcam(*, known: bool) -> Tensor:
        with TorchcamGradCAM(model.module, layer.name, reshape_transform=layer.to_grid) as extract:
            scores = model.module(inputs)
            chosen = classes[0] if known else scores.argmax(1).tolist()
            maps = extract(chosen, scores, normalized=False)[0]
        return interpolate(maps.unsqueeze(1), size=size, mode="bilinear", align_corners=False)

    def peer(*, known: bool) -> object:
        with PeerGradCAM(model.module, [layer.module], reshape_transform=layer.to_grid) as cam:
            return cam(inputs, [ClassifierOutputTarget(classes[0])] * len(inputs) if known else None)

    def prepare(name: str) -> None:
        # Weights ask for gradients as timm makes them; `explain`, not `attribute`, is what freezes them here.
        model.module.requires_grad_(name != "method xaihub")

    found = medians(
        {
            "bare forward": bare,
            "method xaihub": ours,
            "method torchcam": lambda: through_torchcam(known=True),
            "method grad-cam": lambda: peer(known=True),
            "whole xaihub": lambda: explainer.explain(model, inputs),
            "whole torchcam": lambda: through_torchcam(known=False),
            "whole grad-cam": lambda: peer(known=False),
        },
        options.repeats,
        prepare,
    )
    print(f"{options.model}, layer {layer.name}, {options.batch} x {size[0]} pixels, {options.threads} thread(s)")
    for name, value in found.items():
        against = found["whole torchcam" if name.startswith("whole") else "method torchcam"]
        print(f"{name:16} {1000 * value:8.1f} ms  {value / against:5.2f} x torchcam")


if __name__ == "__main__":
    main()
