"""Errors of post-hoc Shapley values by forward passes, compared with shap, captum and shapiq, and their overhead.

Run it on demand: `OMP_NUM_THREADS=1 python tests/benchmarks/bench_shapley_posthoc.py --cache FOLDER`. The game is the
logit of the predicted class of EfficientNet-Lite0 on the sample photo (and on photos, if given), with masked cells
blurred. Up to 16 players the truth is an enumeration, cached, so that every estimator can run with many seeds by
look-up. For more players, forward passes are made and cached as well; the truth is then a fit with interactions plus
what Kernel SHAP finds in the rows that the fit has not seen, which has a standard error. An estimator is charged for
every row that it evaluates. Packages that are not installed are skipped.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import xaihub
from xaihub.masking import coalition_scores, every_coalition, make_features, make_removal
from xaihub_shapley import estimators as ours
from xaihub_shapley import gaussian_process as gp
from xaihub_shapley.gaussian_process import shapes

Game = Callable[[Tensor], Tensor]
Estimator = Callable[["Counted", int, int, int], np.ndarray]


class Kept:
    """A game whose scores are cached in a file, so that no coalition is evaluated twice."""

    def __init__(self, ask: Game, file: Path) -> None:
        self.ask, self.file = ask, file
        self.known: dict[bytes, float] = {}
        if file.is_file():
            with np.load(file) as kept:
                self.known = {row.tobytes(): score for row, score in zip(kept["rows"], kept["scores"], strict=True)}

    def __call__(self, shown: Tensor) -> Tensor:
        """Return (n,) scores, with forward passes for new coalitions only."""
        codes = [row.tobytes() for row in np.packbits(shown.numpy().astype(bool), axis=1)]
        new = {code: row for row, code in enumerate(codes) if code not in self.known}
        if new:
            scores = self.ask(shown[list(new.values())]).tolist()
            self.known |= dict(zip(new, scores, strict=True))
        return torch.tensor([self.known[code] for code in codes], dtype=torch.float64)

    def save(self) -> None:
        """Write all scores."""
        rows = np.array([np.frombuffer(code, dtype=np.uint8) for code in self.known])
        part = self.file.with_suffix(".part.npz")
        np.savez(part, rows=rows, scores=np.array(list(self.known.values())))
        part.rename(self.file)


class Counted:
    """A game that counts its evaluated rows; takes arrays as well."""

    def __init__(self, ask: Game) -> None:
        self.ask, self.rows = ask, 0

    def __call__(self, shown: Tensor) -> Tensor:
        """Return (n,) float64 scores."""
        self.rows += len(shown)
        return self.ask(shown.float()).double()

    def numpy(self, shown: Any) -> np.ndarray:
        """Return (n,) scores of an array of n rows, or of one."""
        return self(torch.from_numpy(np.atleast_2d(np.asarray(shown, dtype=np.float32)))).numpy()


def main() -> None:
    """Print one table per game, then times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", default="shapley-truth", help="folder for enumerations")
    parser.add_argument("--photos", help="folder of photos, some of which are added")
    parser.add_argument("--names", nargs="+", help="their names without suffixes; by default three")
    parser.add_argument("--grid", type=int, default=4, help="cells per side of the enumerated games, at most 4")
    parser.add_argument("--size", type=int, default=128, help="input side of the enumerated games, in pixels")
    parser.add_argument("--only", choices=("enumerated", "large", "times"), nargs="+", help="parts to run")
    parser.add_argument("--large", type=int, default=7, help="cells per side of the large game")
    parser.add_argument("--large-image", default="sample", help="sample, or the name of a photo")
    parser.add_argument("--large-seeds", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="evaluate the games in bfloat16")
    parser.add_argument("--truth", type=int, default=4000, help="rows per part of the large game's truth")
    parser.add_argument("--parts", type=int, default=3, help="number of parts, each held out of the fit in turn")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3, help="repeats of timings")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    Path(options.cache).mkdir(parents=True, exist_ok=True)
    hub = xaihub.Hub()
    images = {"sample": xaihub.sample_photo()}
    if options.photos:
        files = {file.stem: file for file in sorted(Path(options.photos).iterdir()) if file.is_file()}
        names = options.names or list(files)[:: max(1, len(files) // 3)][:3]
        images |= {name: files[name] for name in names}
    parts = options.only or ("enumerated", "large", "times")
    runtime = xaihub.Runtime(precision="bf16" if options.bf16 else "f32")
    if "enumerated" in parts:
        small = hub.load_model(device="cpu", size=options.size, runtime=runtime)
        for name, photo in images.items():
            _enumerated(small, photo, name, options)
    if "large" in parts:
        _large(hub.load_model(device="cpu", runtime=runtime), images[options.large_image], options)
    if "times" in parts:
        _times(hub.load_model(device="cpu"), images["sample"], options)


def _game(model: Any, photo: Any, features: str) -> tuple[Game, Tensor, np.ndarray]:
    """Return the game, the players' shapes, and their centres."""
    image = model.prepare(xaihub.load_image(photo).rgb)[0]
    players = make_features(features, model, image)
    removal = make_removal("blur", model, image)
    target = xaihub.Target().resolve(model.predict(image[None]))

    def ask(shown: Tensor) -> Tensor:
        return coalition_scores(model, image, players, shown, removal=removal, score=target.score)

    rows, columns = np.indices(players.labels.shape)
    labels = players.labels.numpy()
    places = np.array([[rows[labels == k].mean(), columns[labels == k].mean()] for k in range(players.count)])
    return ask, shapes(players), places


def _kind(options: argparse.Namespace) -> str:
    return "-bfloat16" if options.bf16 else ""


def _enumerated(model: Any, photo: Any, name: str, options: argparse.Namespace) -> None:
    ask, parts, places = _game(model, photo, f"grid:{options.grid}")
    players = len(parts)
    file = Path(options.cache) / f"{name}-grid{options.grid}-{options.size}{_kind(options)}.npy"
    shown = every_coalition(players).shown
    if not file.is_file():
        started = time.process_time()
        np.save(file.with_suffix(".part.npy"), ask(shown).numpy())
        file.with_suffix(".part.npy").rename(file)
        print(f"{name}: {len(shown)} coalitions in {time.process_time() - started:.0f} s", flush=True)
    scores = torch.from_numpy(np.load(file)).double()
    truth = ours.enumerated(lambda rows: scores[_codes(rows)], players).values.numpy()
    print(f"\n{name}, {players} players at {options.size} pixels, enumerated")
    print(f"relative error over {options.seeds} seeds (rows evaluated)")
    budgets = [budget for budget in (32, 48, 64, 96, 128, 256, 512, 1024, 2048, 4096) if budget <= 2**players // 4]
    _table(lambda rows: scores[_codes(rows)], parts, places, truth, budgets, options.seeds)


def _large(model: Any, photo: Any, options: argparse.Namespace) -> None:
    ask, parts, places = _game(model, photo, f"grid:{options.large}")
    kind = _kind(options)
    file = Path(options.cache) / f"{options.large_image}-grid{options.large}-{model.input_size[1]}{kind}.npz"
    known = Kept(ask, file.with_name(f"{file.stem}-truth.npz"))
    truth, noise = _truth(known, parts, options.truth, options.parts)
    known.save()
    print(f"\n{options.large_image}, {len(parts)} players at {model.input_size[1]} pixels{kind.replace('-', ', ')}")
    print(f"truth from {options.parts} times {options.truth} rows, relative standard error {noise:.3f}")
    kept = Kept(ask, file)
    try:
        _table(kept, parts, places, truth, [100, 200, 400, 800, 1600], options.large_seeds)
    finally:
        kept.save()


def _truth(ask: Game, parts: Tensor, rows: int, folds: int) -> tuple[np.ndarray, float]:
    """Return Shapley values without the bias of a fit, and their relative standard error.

    A game minus a fit to other rows has small Shapley values, which Kernel SHAP estimates with little variance.
    """
    players, alike = len(parts), gp.correlations(parts, len(parts))
    asked: list[tuple[Tensor, Tensor]] = []

    def answer(shown: Tensor) -> Tensor:
        scores = ask(shown)
        asked.append((2 * shown[::2].double() - 1, (scores[::2] - scores[1::2]) / 2))
        return scores

    seeds = range(10**6, 10**6 + folds)
    for seed in seeds:
        ours.regressed(answer, players, rows, torch.Generator().manual_seed(seed))
    values, variance = torch.zeros(players, dtype=torch.float64), torch.zeros(players, dtype=torch.float64)
    for fold, seed in enumerate(seeds):
        signs, odd = (torch.cat(part) for part in zip(*(asked[:fold] + asked[fold + 1 :]), strict=True))
        kept = (signs.sum(1) > -players) | (torch.arange(len(signs)) == 0)  # each part evaluates both ends
        prior, _ = gp.choose_prior(signs[kept], odd[kept], alike, torch.Generator().manual_seed(0), gp.Choice())
        fit = gp.Posterior(prior, signs[kept], odd[kept])

        def rest(shown: Tensor, fit: gp.Posterior = fit) -> Tensor:
            return ask(shown) - fit.mean(2 * shown.double() - 1)

        found = ours.regressed(rest, players, rows, torch.Generator().manual_seed(seed))
        values += (fit.values + found.values) / folds
        variance += found.stderr.square() / folds**2
    return values.numpy(), float(variance.sum().sqrt() / values.norm())


def _table(ask: Game, parts: Tensor, places: np.ndarray, truth: np.ndarray, budgets: list[int], seeds: int) -> None:
    estimators, players = _estimators(parts, places), len(parts)
    print(f"{'':28}" + "".join(f"{budget:>16}" for budget in budgets))
    for name, estimate in estimators.items():
        line = f"{name:28}"
        for budget in budgets:
            errors, asked = [], []
            try:
                for seed in range(seeds):
                    game = Counted(ask)
                    errors.append(np.linalg.norm(estimate(game, players, budget, seed) - truth) / np.linalg.norm(truth))
                    asked.append(game.rows)
            except Exception as error:  # packages refuse small budgets with errors of their own
                line += f"{type(error).__name__:>16}"
                continue
            line += f"{np.sqrt(np.mean(np.square(errors))):>8.4f} ({np.mean(asked):5.0f})"
        print(line, flush=True)


def _estimators(parts: Tensor, places: np.ndarray) -> dict[str, Estimator]:
    def own(method: Any, **options: Any) -> Estimator:
        return lambda game, players, budget, seed: method(
            game, players, budget, torch.Generator().manual_seed(seed), **options
        ).values.numpy()

    found = {
        "xaihub interactions": own(ours.interacting, shapes=parts),
        "xaihub kernel": own(ours.regressed),
        "xaihub permutation": own(ours.ordered),
        "captum KernelShap": _captum,
        "shap KernelExplainer": _shap_kernel,
        "shap PermutationExplainer": _shap_permutation,
        "shap PartitionExplainer": _shap_partition(places),
    }
    try:
        import shapiq  # noqa: F401 - whether it is there
    except ImportError:
        return found
    for name, values in (
        ("KernelSHAP", {}),
        ("KernelSHAP", {"pairing_trick": True}),
        ("UnbiasedKernelSHAP", {}),
        ("PermutationSamplingSV", {}),
        ("SVARM", {}),
    ):
        found[f"shapiq {name}{', paired' if values else ''}"] = _shapiq(name, values)
    return found


def _captum(game: Counted, players: int, budget: int, seed: int) -> np.ndarray:
    import captum.attr

    torch.manual_seed(seed)
    ends = torch.ones(1, players), torch.zeros(1, players)
    # It evaluates the two ends in addition.
    found = captum.attr.KernelShap(lambda rows: game(rows).float()).attribute(
        *ends, n_samples=budget - 2, perturbations_per_eval=budget, return_input_shape=False
    )
    return found.flatten().double().numpy()


def _shap_kernel(game: Counted, players: int, budget: int, seed: int) -> np.ndarray:
    import shap

    np.random.seed(seed)
    explainer = shap.KernelExplainer(game.numpy, np.zeros((1, players)))
    return explainer.shap_values(np.ones((1, players)), nsamples=budget - 2, l1_reg=False, silent=True)[0]


def _shap_permutation(game: Counted, players: int, budget: int, seed: int) -> np.ndarray:
    import shap

    masker = shap.maskers.Independent(np.zeros((1, players)))
    explainer = shap.PermutationExplainer(game.numpy, masker, seed=seed)
    return explainer(np.ones((1, players)), max_evals=budget, silent=True).values[0]


def _shap_partition(places: np.ndarray) -> Estimator:
    def run(game: Counted, players: int, budget: int, seed: int) -> np.ndarray:
        import shap
        from scipy.cluster.hierarchy import linkage

        masker = shap.maskers.Partition(np.zeros((1, players)), clustering=linkage(places, "complete"))
        explainer = shap.PartitionExplainer(game.numpy, masker)
        return explainer(np.ones((1, players)), max_evals=budget - budget % 2, silent=True).values[0]

    return run


def _shapiq(name: str, values: dict[str, Any]) -> Estimator:
    def run(game: Counted, players: int, budget: int, seed: int) -> np.ndarray:
        from shapiq import approximator

        # Its estimators take a game whose empty coalition is worth 0; that value is a row of the budget.
        nothing = float(game.numpy(np.zeros((1, players)))[0])
        made = getattr(approximator, name)(n=players, random_state=seed, **values)
        found = made.approximate(budget - 1, lambda rows: game.numpy(rows) - nothing)
        return np.array([found[(player,)] for player in range(players)])

    return run


def _times(model: Any, photo: Any, options: argparse.Namespace) -> None:
    """Compare the explainer with bare forward passes of the same number of rows."""
    image = model.prepare(xaihub.load_image(photo).rgb)[0]
    print(f"\nCPU time, one thread, median of {options.repeats}")
    for features, budget, estimator in (("grid:4", 256, "interactions"), ("grid:7", 512, "interactions")):
        explainer = xaihub.get_explainer(
            "shapley_values", features=features, budget=budget, estimator=estimator, baseline="blur"
        )
        rows = round(explainer.explain(model, image[None])[0].metadata["forward_passes"]) + 1

        def bare(rows: int = rows) -> None:
            from xaihub.masking import batch_rows

            size = batch_rows(model)
            inputs = torch.randn(size, *model.input_size)
            with torch.inference_mode():
                for start in range(0, rows, size):
                    model(inputs[: rows - start])

        times: dict[str, list[float]] = {"bare": [], "xaihub": []}
        for _ in range(options.repeats):
            for side, call in (("bare", bare), ("xaihub", lambda e=explainer: e.explain(model, image[None]))):
                started = time.process_time()
                call()
                times[side].append(time.process_time() - started)
        plain, full = (statistics.median(seconds) for seconds in times.values())
        print(f"{features}, {rows} rows: bare {plain:.2f} s, shapley_values {full:.2f} s, ratio {full / plain:.3f}")
        parts = shapes(make_features(features, model, image))
        worth = torch.randn(len(parts), 4, generator=torch.Generator().manual_seed(0))
        started = time.process_time()
        ours.interacting(lambda shown, w=worth: (shown @ w).tanh().sum(1), len(parts), budget, torch.Generator(), parts)
        print(f"the choice of coalitions and the fit alone: {time.process_time() - started:.2f} s", flush=True)


def _codes(shown: Tensor) -> Tensor:
    return (shown.long() * 2 ** torch.arange(shown.shape[1])).sum(1)


if __name__ == "__main__":
    main()
