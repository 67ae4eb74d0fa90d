"""Time of explainers and metrics divided by that of the usual implementation, at equal numbers of forward passes.

python tests/benchmarks/bench_peers.py --masks 1000 --repeats 5 --models efficientnet_lite0 resnet18

CPU time on one thread. All sides get the same image, class, windows, superpixels, layer and number of masks, and take
turns; a figure is the median over the repeats of the ratio of two neighbouring measurements, so that other work on the
machine disturbs both alike. The usual implementations (see `peers.py`) get the network as its library creates it,
without a graph, and run with the number of rows per pass that is fastest for them here. Columns, for each of ours:

- peer: our time per pass over the peer's. The passes are equal but for repeated coalitions, which we run once.
- bare: our time over that of as many passes alone, on ready inputs, in the same configuration.
- map: the correlation with the map of the network itself, without any of this.

"First" is the extra time of the first explanation of a model, in which the batch size is found and copies of weights or
a compiled network are made, with an empty cache. `gpu.py` prints the same table for a GPU.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import nan
from typing import Any

import torch
from peers import Peer, peers
from torch import Tensor
from torch.nn.functional import interpolate

import xaihub
from xaihub.masking import batch_rows

MODELS = ["efficientnet_lite0", "resnet18", "vit_tiny_patch16_224"]
# Of Score-CAM: its passes are the channels, of which the last layers have up to 1,280.
LAYERS = {"efficientnet_lite0": "blocks.2", "resnet18": "layer1", "vit_tiny_patch16_224": "blocks.10"}
WINDOW = 64  # of occlusion, moved by its half
CURVE = 28  # points of an insertion or deletion curve


@dataclass
class Setup:
    """A model and what is explained of it."""

    model: xaihub.Model
    inputs: Tensor  # (1, C, H, W)
    target: int
    heat: Tensor  # (H, W), whose insertion and deletion are measured

    @classmethod
    def of(cls, name: str, runtime: xaihub.Runtime, device: str = "cpu") -> Setup:
        """Load a bundled or a randomly initialised model."""
        torch.manual_seed(0)
        scratch = name != "efficientnet_lite0"
        model = xaihub.Hub().load_model(name, device=device, scratch=scratch, runtime=runtime)
        image, _ = model.prepare(xaihub.load_image(xaihub.sample_photo()).rgb)
        heat = interpolate(torch.rand(1, 1, 7, 7), image.shape[1:], mode="bicubic")[0, 0]
        return cls(model, image[None], int(model.predict(image[None]).argmax()), heat)

    def explain(self, explainer: xaihub.Explainer) -> Tensor:
        """Return a map."""
        return explainer.explain(self.model, self.inputs, self.target)[0].values

    def curves(self) -> None:
        """Measure insertion and deletion of one map."""
        logits = self.model.predict(self.inputs)
        score = xaihub.ClassScore(index=self.target, name="", logit=0.0, probability=0.0)
        target = xaihub.ResolvedTarget(index=torch.tensor([self.target]))
        scene = xaihub.Scene(model=self.model, image=self.inputs[0], logits=logits[0], target=target)
        explanation = xaihub.Explanation(values=self.heat[None], target=score, predicted=score)
        case = xaihub.Case(scene=scene, explanation=explanation)
        for name in ("insertion", "deletion"):
            xaihub.Hub().get_metric(name, steps=CURVE, baseline="blur").measure(case)

    def alone(self, passes: int) -> None:
        """Run as many passes on ready inputs, in the same configuration."""
        rows = batch_rows(self.model)
        ready = self.inputs.expand(rows, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), self.model.executing(passes), self.model.executor.one_period():
            for start in range(0, passes, rows):
                part = ready[: passes - start]
                with self.model.autocast():
                    self.model.executor.network(self.model.module, part)(part)

    def correlation(self, explainer: xaihub.Explainer) -> float:
        """Return the correlation of a map with that of the network itself."""
        found = self.explain(explainer)
        handle = next(self.model.module.children()).register_forward_hook(lambda *_: None)  # nothing replaces it
        try:
            plain = self.explain(explainer)
        finally:
            handle.remove()
        return float(torch.corrcoef(torch.stack([found.flatten(), plain.flatten()]).double())[0, 1])


def explainers(masks: int, layer: str) -> dict[str, xaihub.Explainer]:
    """Return ours, each with as many masks as its peer, where that can be chosen."""
    settings: dict[str, tuple[str, dict[str, Any]]] = {
        "RISE": ("rise", {"masks": masks, "tolerance": 0.0}),
        "occlusion": ("occlusion", {"window": WINDOW, "stride": WINDOW // 2}),
        "KernelSHAP": ("kernel_shap", {"samples": masks}),
        "partition SHAP": ("shap", {"evaluations": masks}),
        "Score-CAM": ("scorecam", {"layer": layer}),
    }
    return {title: xaihub.get_explainer(name, **values) for title, (name, values) in settings.items()}


def seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of a call, or the wall seconds if torch has a GPU."""
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.synchronize()
    clock = time.perf_counter if gpu else time.process_time
    start = clock()
    work()
    if gpu:
        torch.cuda.synchronize()
    return clock() - start


def ratio(first: list[float], second: list[float]) -> float:
    """Return the median of the ratios of neighbouring measurements."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def compare(
    setups: Mapping[str, Setup], explainer: xaihub.Explainer | None, peer: Peer, rows: int, repeats: int
) -> dict[str, tuple[float, float]]:
    """Return, for each of ours, the time per pass over the peer's, and over that of bare passes."""
    runs = {name: partial(each.explain, explainer) if explainer else each.curves for name, each in setups.items()}
    passes = {}
    for name, setup in setups.items():
        with setup.model.counting() as counts:
            runs[name]()
        passes[name] = counts.forward_passes
    before = peer.network.rows
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        times.setdefault("peer", []).append(seconds(partial(peer.run, rows)))
        for name, setup in setups.items():
            times.setdefault(name, []).append(seconds(runs[name]))
            times.setdefault(f"{name} bare", []).append(seconds(partial(setup.alone, passes[name])))
    theirs = (peer.network.rows - before) / repeats
    return {
        name: (ratio(times[name], times["peer"]) * theirs / passes[name], ratio(times[name], times[f"{name} bare"]))
        for name in setups
    }


def first(setup: Setup, explainer: xaihub.Explainer) -> float:
    """Explain until the batch size is found; return the extra seconds of the first explanation."""
    work = partial(setup.explain, explainer)
    return seconds(work) - min(seconds(work) for _ in range(2))


def table(
    models: Iterable[str], make: Callable[[str], Mapping[str, Setup]], batches: Sequence[int], options: Any
) -> None:
    """Print one row per model and method.

    Args:
        models: Names.
        make: Returns ours, by the titles of their columns, for a name.
        batches: Rows per pass to try for the peers.
        options: With `masks`, `repeats` and `methods`.
    """
    warnings.simplefilter("ignore")
    print(f"{options.masks} masks, {options.repeats} repeats, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for name in models:
            setups = make(name)
            ours, some = explainers(options.masks, LAYERS.get(name, "")), next(iter(setups.values()))
            theirs = peers(some, options.masks, LAYERS.get(name, ""), CURVE, WINDOW)
            pilot = next(iter(theirs.values())).pilot
            pilot(batches[0])  # whatever is prepared once
            tried = {rows: min(seconds(partial(pilot, rows)) for _ in range(2)) for rows in batches}
            rows = min(tried, key=lambda rows: tried[rows])
            print(f"\n{name}: {rows} rows per pass of the peers")
            for title, setup in setups.items():
                spent = first(setup, ours["RISE"])
                print(f"{title}: {batch_rows(setup.model)} rows per pass, first {spent:.2f} s")
            heads = "".join(f"{title + '/peer':>15}{'/bare':>7}{'map':>9}" for title in setups)
            print(f"{'':20}{heads}", flush=True)
            for title, peer in theirs.items():
                if options.methods and title not in options.methods:
                    continue
                line = f"{title:20}"
                for own, found in compare(setups, ours.get(title), peer, rows, options.repeats).items():
                    same = setups[own].correlation(ours[title]) if title in ours else nan
                    line += f"{found[0]:15.2f}{found[1]:7.2f}{same:9.5f}"
                print(f"{line}  {peer.name}", flush=True)


def parser(text: str | None) -> argparse.ArgumentParser:
    """Return a parser of the options that both scripts have."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--models", nargs="+", default=MODELS)
    made.add_argument("--methods", nargs="+", help="such as RISE or 'partition SHAP'; default: all")
    made.add_argument("--masks", type=int, default=60, help="masks or samples; ratios hardly depend on them")
    made.add_argument("--repeats", type=int, default=5)
    return made


def main() -> None:
    """Print the table for CPUs."""
    made = parser(__doc__)
    made.add_argument("--backends", nargs="+", default=["eager", "openvino"], help="eager: the default installation")
    made.add_argument("--precision", default="f32")
    options = made.parse_args()
    torch.set_num_threads(1)

    def make(name: str) -> dict[str, Setup]:
        return {
            backend: Setup.of(name, xaihub.Runtime(backend=backend, precision=options.precision))
            for backend in options.backends
        }

    table(options.models, make, (1, 2, 4, 8, 16), options)


if __name__ == "__main__":
    main()
