"""Error of sampled Shapley values against enumeration on a real network, by the number of forward passes.

    python tests/benchmarks/bench_shapley_error.py --photos DIR --count 3

The game is the predicted class's probability (or `--output logit`) over the superpixels of a photo, hidden by a blurred
image. All coalitions are evaluated once and kept in `--tables`; every estimator then uses that table, with `--runs`
seeds. The error is |estimate - exact| / |exact|, as a mean over photos and seeds. A budget counts every pass, the
two ends too; an estimator that needs another number is shown with it. Without `--photos` the sample photo is used.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import shap
import torch
from torch import Tensor

import xaihub
from xaihub.masking import coalition_scores, draw_orders, every_coalition, make_features, make_removal, shapley_weights
from xaihub_first_principles.mask_families import Shapley
from xaihub_first_principles.measures import integrate

Game = Callable[[Tensor], Tensor]
MOST = 12  # players
BUDGETS = (32, 64, 128, 256, 512, 1024, 2048)


def main() -> None:
    """Ask what is missing, then print one line a budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--features", default="superpixels:13")
    parser.add_argument("--output", choices=["probability", "logit"], default="probability")
    parser.add_argument("--tables", type=Path, default=Path(tempfile.gettempdir()) / "xaihub_shapley_tables")
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    photos = [xaihub.sample_photo()]
    if options.photos is not None and options.photos.is_dir():
        found = sorted(options.photos.iterdir())
        photos = found[:: max(1, len(found) // options.count)][: options.count]
    games = [table(photo, options) for photo in photos]
    print(f"{len(games)} photos with {', '.join(str(int(np.log2(len(game)))) for game in games)} players")
    print("| forward passes | " + " | ".join(ESTIMATORS) + " |")
    print("|---" * (len(ESTIMATORS) + 1) + "|")
    for budget in BUDGETS:
        fits = [game for game in games if budget < len(game)]
        if not fits:
            continue
        cells = []
        for estimate in ESTIMATORS.values():
            errors, passes = [], []
            for game in fits:
                error, questions = judge(game, estimate, budget, options.runs)
                errors.append(error)
                passes.append(questions)
            note = "" if round(np.mean(passes)) == budget else f" ({np.mean(passes):.0f})"
            cells.append(f"{np.mean(errors):.3f}{note}")
        print(f"| {budget} | {' | '.join(cells)} |")


def table(photo: Path, options: argparse.Namespace) -> Tensor:
    """Return the (2^d,) scores of all coalitions by their binary code; evaluated once."""
    file = options.tables / f"{photo.stem}_{options.features.replace(':', '')}_{options.output}.npy"
    if not file.exists():
        model = xaihub.load_model(options.model, device="cpu")
        image, _ = model.prepare(xaihub.load_image(photo).rgb)
        features = make_features(options.features, model, image)
        if features.count > MOST:
            raise SystemExit(f"{photo.name} has {features.count} superpixels; use fewer with --features")
        target = xaihub.Target().resolve(model.predict(image[None]))
        scores = coalition_scores(
            model, image, features, every_coalition(features.count).shown,
            removal=make_removal("blur", model, image),
            score=lambda z: target.score(z.softmax(1) if options.output == "probability" else z),
        )  # fmt: skip
        options.tables.mkdir(parents=True, exist_ok=True)
        np.save(file, scores.numpy())
    return torch.from_numpy(np.load(file)).double()


def judge(
    scores: Tensor, estimate: Callable[[Game, int, int, int], Tensor], budget: int, runs: int
) -> tuple[float, float]:
    """Return the mean relative error and the mean number of questions."""
    d = int(np.log2(len(scores)))
    everything = every_coalition(d)
    exact = shapley_weights(everything.shown, everything.log_expected).T @ scores
    errors, passes = [], []
    for seed in range(runs):
        count = 0

        def game(shown: Tensor) -> Tensor:
            nonlocal count
            count += len(shown)
            return scores[(shown.round().long() * 2 ** torch.arange(d)).sum(1)]

        errors.append(float((estimate(game, d, budget, seed) - exact).norm() / exact.norm()))
        passes.append(count)
    return float(np.mean(errors)), float(np.mean(passes))


def ours(game: Game, d: int, budget: int, seed: int, *, adjust: bool = True) -> Tensor:
    """The Shapley family."""
    return integrate(game, Shapley(budget=budget, adjust=adjust), torch.ones(d), seed=seed).values


def orders(game: Game, d: int, budget: int, seed: int) -> Tensor:
    """Permutation sampling with reverses, of the masking engine."""
    found, weights = draw_orders(d, budget, generator=torch.Generator().manual_seed(seed))
    return weights.T @ game(found.shown)


def kernel(game: Game, d: int, budget: int, seed: int) -> Tensor:
    """KernelExplainer of shap, without its selection of features."""
    np.random.seed(seed)
    explainer = shap.KernelExplainer(lambda rows: game(torch.from_numpy(rows)).numpy(), np.zeros((1, d)))
    # Two further passes are the ends; it evaluates the empty coalition, and one row while it is made, twice.
    values = explainer.shap_values(np.ones((1, d)), nsamples=budget - 3, silent=True, l1_reg=False)
    return torch.from_numpy(values[0])


def permutation(game: Game, d: int, budget: int, seed: int) -> Tensor:
    """PermutationExplainer of shap; it needs at least 2 d + 1 passes per permutation."""
    explainer = shap.explainers.Permutation(
        lambda rows: game(torch.from_numpy(rows)).numpy(), np.zeros((1, d)), seed=seed
    )
    most = max(budget, 2 * d + 1)
    return torch.from_numpy(explainer(np.ones((1, d)), max_evals=most, silent=True).values[0])


ESTIMATORS: dict[str, Callable[[Game, int, int, int], Tensor]] = {
    "Shapley family": ours,
    "without regression": lambda game, d, budget, seed: ours(game, d, budget, seed, adjust=False),
    "orders in pairs": orders,
    "shap Kernel": kernel,
    "shap Permutation": permutation,
}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
