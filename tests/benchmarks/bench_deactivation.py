"""Time deactivated forward passes against plain ones.

Run it on demand: `python tests/benchmarks/bench_deactivation.py --rows 4`. Both sides see the same rows, thread count
and memory order, in turns, as `xaihub explain` runs them without other backends; the figure is the ratio of median CPU
times. For a vision transformer the time falls with the hidden share, since dropped tokens are not computed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import xaihub
from xaihub_convad.deactivation import Deactivation


def main() -> None:
    """Print the CPU time of both sides and their ratio, for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["efficientnet_lite0", "resnet18"])
    parser.add_argument("--rows", type=int, default=4, help="rows a forward pass")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--rule", default="aligned")
    parser.add_argument("--pooling", default="plain")
    parser.add_argument("--padding", default="zero")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    deactivation = Deactivation(rule=options.rule, pooling=options.pooling, padding=options.padding)
    for name in options.models:
        print(f"{name:22} {options.rows} rows: deactivated / plain = {_compare(name, deactivation, options):.3f}")


def _compare(name: str, deactivation: Deactivation, options: argparse.Namespace) -> float:
    model = _model(name)
    model.runtime.backend = "eager"
    image = torch.randn(model.input_size)
    height, width = image.shape[1:]
    cells = (torch.rand(options.rows, 1, 7, 7) < 0.5).float()
    masks = torch.nn.functional.interpolate(cells, size=(height, width))
    ready = image.expand(options.rows, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    with model.untouched(), torch.inference_mode(), model.executing():
        return _ratio(lambda: model(ready), lambda: deactivation(model, image, masks), options.repeats)


def _model(name: str) -> xaihub.Model:
    if name == "efficientnet_lite0":
        return xaihub.load_model(name, device="cpu")
    import timm

    from xaihub import Model, Preprocessing

    module = timm.create_model(name)
    size = module.default_cfg["input_size"]
    return Model(module, name=name, preprocessing=Preprocessing(spatial=(), size=size, mean=(0, 0, 0), std=(1, 1, 1)))


def _ratio(plain: Callable[[], object], ours: Callable[[], object], repeats: int) -> float:
    times: dict[Callable[[], object], list[float]] = {plain: [], ours: []}
    with torch.inference_mode():
        for number in range(repeats + 1):
            for work, taken in times.items():
                start = time.process_time()
                work()
                taken.extend([time.process_time() - start] if number else [])  # the first turn warms up
    return statistics.median(times[ours]) / statistics.median(times[plain])


if __name__ == "__main__":
    main()
