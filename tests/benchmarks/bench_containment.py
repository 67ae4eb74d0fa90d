"""The cost of containment: explanations with a plugin watched, against the same ones with nothing watched.

    python tests/benchmarks/bench_containment.py --pairs 30

Watched and unwatched explanations of the sample photo alternate, in an order that is drawn for each pair, on one
thread. Of each pair the quotient of CPU seconds is taken; the table has the median of the quotients. A built-in plugin
is watched by version counters; the same code as that of a third party by the contents of all weights.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import xaihub
from xaihub.models.containment import Guard
from xaihub.specs import Origin

EXPLAINERS: dict[str, dict[str, int]] = {"gradcam": {}, "input_x_gradient": {}, "integrated_gradients": {"steps": 4}}
LIMITS = {True: 0.03, False: 0.20}


@contextmanager
def unwatched(self: Guard, model: Any, by: Any, *, parallel: bool) -> Iterator[None]:
    """Watch nothing."""
    yield


def seconds(explainer: xaihub.Explainer, model: xaihub.Model, inputs: torch.Tensor, logits: torch.Tensor) -> float:
    """Return the CPU seconds of one explanation."""
    started = time.process_time()
    explainer.explain(model, inputs, logits=logits)
    return time.process_time() - started


def main() -> None:
    """Print one row per model, explainer and kind of plugin; exit with 1 if a median is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--models", nargs="+", default=["efficientnet_lite0"])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    watching, over = Guard.watching, False
    for name in chosen.models:
        model = xaihub.load_model(name, device="cpu")
        inputs = model.prepare(xaihub.load_image(xaihub.sample_photo()).rgb)[0][None]
        logits = model.predict(inputs)
        for method, values in EXPLAINERS.items():
            explainer = xaihub.get_explainer(method, **values)
            for builtin, limit in LIMITS.items():
                explainer.origin = Origin(plugin="measured", builtin=builtin)
                for _ in range(2):
                    seconds(explainer, model, inputs, logits)
                quotients = []
                for _ in range(chosen.pairs):
                    spent = {}
                    for watched in random.sample((True, False), 2):
                        Guard.watching = watching if watched else unwatched  # type: ignore[method-assign]
                        spent[watched] = seconds(explainer, model, inputs, logits)
                    quotients.append(spent[True] / spent[False])
                median = statistics.median(quotients) - 1
                over |= median > limit
                kind = "built-in" if builtin else "third party"
                print(f"{name:24} {method:22} {kind:12} {median:+7.1%}   (limit {limit:.0%})")
    raise SystemExit(int(over))


if __name__ == "__main__":
    main()
