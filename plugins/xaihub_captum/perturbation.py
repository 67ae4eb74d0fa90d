"""Perturbation methods: captum chooses the coalitions and fits, the masking engine evaluates the model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import captum.attr
import torch
from captum.attr._core.lime import get_exp_kernel_similarity_function
from torch import Tensor
from torch.utils.data import DataLoader

from xaihub import (
    Attribution,
    Explainer,
    Meta,
    Model,
    ParameterError,
    Passes,
    ResolvedTarget,
    current_generator,
    forked_generator,
    preview,
    rounds,
)
from xaihub.masking import BaselineName, Features, Windows, coalition_scores, make_features, make_removal

# Maximum number of coalitions that captum builds at one time, each with one float per player.
ABLATIONS = 1024
MOST_DRAWS = 4  # draws per sample: where few coalitions are likely, not all samples may be distinct
CHECKS = 8  # how often a standard error is checked during a run

FeatureName = Annotated[
    str,
    Meta(description="Pixels masked together: grid:N (N x N cells), patches:N, superpixels:N, or pixels."),
]
Output = Annotated[Literal["logit", "probability"], Meta(description="The class score that is explained.")]
Game = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Fitted:
    """Values of the players."""

    values: Tensor  # (d,)
    intercept: float | None = None  # fitted score of the fully masked image, if the method fits one
    stderr: Tensor | None = None  # (d,) standard errors, if they are known

    @property
    def noise(self) -> float:
        """The root mean square standard error over the spread of the values."""
        error = 0.0 if self.stderr is None else float(self.stderr.square().mean().sqrt())
        return error / max(float(self.values.double().std(correction=0)), 1e-12)


class _Perturbation(Explainer):
    """Values of features, assigned to their pixels."""

    baseline: BaselineName = "grey"
    output: Output = "logit"

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Attribution:
        """Return (B, 1, H, W): each pixel carries its feature's value."""
        found, regions, gaps = [], [], []
        for row, image in enumerate(inputs):
            features = self.players(model, image)
            game = self._game(model, image, features, target[row : row + 1])
            fitted = self.values(game, features)
            if self.completeness:
                ends = game(torch.stack([torch.zeros(features.count), torch.ones(features.count)]))
                gaps.append((fitted.values.sum() - (ends[1] - ends[0])).abs())
                fitted = replace(fitted, intercept=float(ends[0]))
            found.append(fitted)
            regions.append(features)
        return replace(self.painted(found, regions), completeness_gap=torch.stack(gaps) if gaps else None)

    def painted(self, found: Sequence[Fitted], regions: Sequence[Features]) -> Attribution:
        """Return (B, 1, H, W) maps of the values, and what is known of the last one."""
        last = found[-1]
        details: dict[str, Any] = {"players": regions[-1].count}
        if last.intercept is not None:
            details["intercept"] = last.intercept
        if last.stderr is not None:
            details["stderr_to_spread"] = round(last.noise, 4)
        maps = [features.spread(one.values) for one, features in zip(found, regions, strict=True)]
        return Attribution(values=torch.stack(maps).unsqueeze(1), details=details)

    @abstractmethod
    def players(self, model: Model, image: Tensor) -> Features:
        """Return the features that are masked together."""

    @abstractmethod
    def values(self, game: Game, features: Features) -> Fitted:
        """Return the values of the players."""

    def _game(self, model: Model, image: Tensor, features: Features, target: ResolvedTarget) -> Game:
        # Each image of a batch gets the noise it would get alone.
        with forked_generator():
            removal = make_removal(self.baseline, model, image)

        def score(logits: Tensor) -> Tensor:
            return target.score(logits, output=self.output)

        def fresh(coalitions: Tensor) -> Tensor:
            return coalition_scores(model, image, features, coalitions, removal=removal, score=score)

        return _Memory(fresh, features.count)


class _Memory:
    """A game that evaluates each coalition once: random ones repeat, above all the small ones of KernelSHAP."""

    def __init__(self, game: Game, players: int) -> None:
        self._game, self._shown, self._scores = game, torch.zeros(0, players), torch.zeros(0)

    def __call__(self, coalitions: Tensor) -> Tensor:
        """Return the (n,) scores of (n, d) coalitions."""
        distinct, where = torch.cat([self._shown, coalitions.float()]).unique(dim=0, return_inverse=True)
        known = torch.zeros(len(distinct), dtype=torch.bool)
        known[where[: len(self._shown)]] = True
        scores = torch.zeros(len(distinct))
        scores[where[: len(self._shown)]] = self._scores
        if not bool(known.all()):
            scores[~known] = self._game(distinct[~known])
        asked = where[len(self._shown) :]
        self._shown, self._scores = distinct, scores
        return scores[asked]


class _Ablation(_Perturbation):
    parallel = True

    def values(self, game: Game, features: Features) -> Fitted:
        """Return the drop in score when one player is masked."""
        values: Tensor = captum.attr.FeatureAblation(game).attribute(
            torch.ones(1, features.count), torch.zeros(1, features.count), perturbations_per_eval=ABLATIONS
        )
        return Fitted(values[0])


class FeatureAblation(_Ablation):
    """Drop in the class score when one feature is masked."""

    features: FeatureName = "grid:7"

    def players(self, model: Model, image: Tensor) -> Features:
        """Return the features named by the parameter."""
        return make_features(self.features, model, image)


class Occlusion(_Ablation):
    """Drop in the class score under a sliding window (Zeiler and Fergus 2014, arXiv 1311.2901, Sec. 4.2)."""

    window: Annotated[int, Meta(ge=1, description="Side of the masked square, in pixels.")] = 32
    stride: Annotated[int, Meta(ge=1, description="Pixels between neighbouring windows.")] = 16

    def players(self, model: Model, image: Tensor) -> Features:  # noqa: ARG002 - as in the base class
        """Return the windows; a pixel's value is the mean over those that cover it."""
        if self.stride > self.window:
            raise ParameterError(
                f"a stride of {self.stride} pixels leaves gaps between windows of {self.window}",
                hint="use a stride of at most the window",
            )
        height, width = image.shape[-2:]
        return Windows((height, width), window=self.window, stride=self.stride)


class _Sampled(_Perturbation):
    stochastic = True
    parallel = True
    checks: ClassVar[int] = 1

    samples: Annotated[
        int,
        Meta(ge=4, description="Random coalitions, all different; each costs one forward pass."),
        Passes(),
    ] = 1000
    features: FeatureName = "superpixels:50"

    def players(self, model: Model, image: Tensor) -> Features:
        """Return the features named by the parameter, at least two and few enough for the samples."""
        features = make_features(self.features, model, image)
        if features.count < 2:
            raise ParameterError(
                f"features {self.features!r} gives only {features.count} region", hint="use a finer grid"
            )
        if self.samples < features.count + 2:
            raise ParameterError(
                f"{self.samples} samples cannot determine the values of {features.count} features",
                hint=f"use samples={2 * features.count + 2} or more",
            )
        return features

    def values(self, game: Game, features: Features) -> Fitted:
        """Return the fit to all coalitions, or to fewer if they are enough or the time is up."""
        coalitions, distinct = _drawn(self.draw, self.samples, features.count)
        least = 2 * features.count + 2
        for count in rounds(int(distinct[-1]), checks=self.checks, first=least):
            rows = int((distinct <= count).sum())
            found = self.fit(game, coalitions[:rows])
            if count >= least and self.enough(found):
                break
            preview(partial(self.painted, [found], [features]))
        return found

    def enough(self, found: Fitted) -> bool:  # noqa: ARG002
        """Return whether no further coalitions are needed."""
        return False

    @abstractmethod
    def draw(self, count: int, players: int) -> Tensor:
        """Draw (n, d) coalitions, at least `count`, from the explanation's own generator."""

    @abstractmethod
    def fit(self, game: Game, coalitions: Tensor) -> Fitted:
        """Fit the method's model to the scores of (n, d) coalitions."""


def _drawn(draw: Callable[[int, int], Tensor], samples: int, players: int) -> tuple[Tensor, Tensor]:
    """Draw coalitions until `samples` of them are distinct; also return how many are among the first n, (n,).

    If there are not that many coalitions, `samples` are drawn.
    """
    rows = draw(samples, players)
    while True:
        _, where = rows.unique(dim=0, return_inverse=True)
        place = torch.arange(len(rows))
        first = torch.full_like(place, len(rows)).scatter_reduce(0, where, place, "amin")
        distinct = (first[where] == place).cumsum(0)
        if distinct[-1] >= samples or len(rows) >= MOST_DRAWS * samples or (players < 32 and 2**players <= samples):
            last = int((distinct < samples).sum()) + 1
            return rows[:last], distinct[:last]
        rows = torch.cat([rows, draw(samples, players)])


class _Fit:
    """A linear model of scikit-learn, as captum uses it, with the standard errors of its coefficients."""

    def __init__(self, model: Any, *, ridge: float = 0.0) -> None:
        self.model, self.ridge = model, ridge

    def fit(self, data: DataLoader[Any]) -> None:
        self.data = data.dataset.tensors  # type: ignore[attr-defined]
        coalitions, scores, weights = (part.numpy() for part in self.data)
        self.model.fit(coalitions, scores, sample_weight=weights)

    def representation(self) -> Tensor:
        return torch.as_tensor(self.model.coef_, dtype=torch.float32).view(1, -1)

    @property
    def stderr(self) -> Tensor:
        """(d,) robust to unequal variances: the errors of the fit, coalition by coalition (White 1980)."""
        coalitions, scores, weights = (part.double() for part in self.data)
        rest = scores - torch.as_tensor(self.model.predict(self.data[0].numpy())).double()
        centred = coalitions - weights @ coalitions / weights.sum()
        weighted = centred * weights.unsqueeze(1)
        inverse = torch.linalg.pinv(centred.T @ weighted + self.ridge * torch.eye(centred.shape[1]), hermitian=True)
        errors: Tensor = (inverse @ (weighted * rest.unsqueeze(1)).T).square().sum(1).sqrt()
        return errors


class _KernelShap(captum.attr.KernelShap):  # type: ignore[misc]
    def __init__(self, game: Game, coalitions: Tensor) -> None:
        from sklearn.linear_model import LinearRegression

        super().__init__(game)
        self.interpretable_model = _Fit(LinearRegression())
        self.coalitions = coalitions

    def kernel_shap_perturb_generator(self, original_inp: Tensor, **kwargs: Any) -> Iterator[Tensor]:  # noqa: ARG002
        """Yield the coalitions that were drawn."""
        yield from self.coalitions.long().split(1)


class KernelShap(_Sampled):
    """Shapley values of features by weighted regression (Lundberg and Lee 2017, arXiv 1705.07874, Sec. 4.1)."""

    completeness = True

    def draw(self, count: int, players: int) -> Tensor:
        """Draw coalitions as captum does, the full and the empty one first."""
        generator, sizes = current_generator(), torch.arange(players, dtype=torch.float)
        kernel = (players - 1) / (sizes * (players - sizes))
        kernel[0] = 0
        size = torch.multinomial(kernel, count, replacement=True, generator=generator)
        ranks = torch.randn(count, players, generator=generator).argsort(1).argsort(1)
        ends = torch.stack([torch.ones(players), torch.zeros(players)])
        return torch.cat([ends, (ranks < size.unsqueeze(1)).float()])

    def fit(self, game: Game, coalitions: Tensor) -> Fitted:
        """Return the coefficients of the regression with Shapley weights; it fits the masked image's score exactly."""
        players = coalitions.shape[1]
        values: Tensor = _KernelShap(game, coalitions).attribute(
            torch.ones(1, players),
            torch.zeros(1, players),
            n_samples=len(coalitions),
            perturbations_per_eval=len(coalitions),
            return_input_shape=False,
        )
        return Fitted(values.flatten())


class Lime(_Sampled):
    """A local linear model of the score over features (Ribeiro, Singh, Guestrin 2016, arXiv 1602.04938, Sec. 3)."""

    samples: Annotated[
        int,
        Meta(ge=4, description="Maximum number of random coalitions, all different; each costs one forward pass."),
        Passes(tolerance=0.0),
    ] = 1000
    output: Output = "probability"
    width: Annotated[float, Meta(gt=0, description="Width of the similarity kernel on cosine distance.")] = 0.25
    ridge: Annotated[float, Meta(ge=0, description="Strength of the ridge penalty.")] = 1.0
    tolerance: Annotated[
        float,
        Meta(
            ge=0,
            description="Stop when the standard error is below this fraction of the coefficients' spread; 0 draws all"
            " samples.",
        ),
    ] = 0.25

    @property
    def checks(self) -> int:  # type: ignore[override]
        """How often the standard error is checked."""
        return CHECKS if self.tolerance else 1

    def draw(self, count: int, players: int) -> Tensor:
        """Draw each feature with probability one half, as captum does."""
        return torch.bernoulli(torch.full((count, players), 0.5), generator=current_generator())

    def enough(self, found: Fitted) -> bool:
        """Return whether the standard error is within the tolerance."""
        return found.noise < self.tolerance

    def fit(self, game: Game, coalitions: Tensor) -> Fitted:
        """Return the coefficients and the intercept of the local linear model."""
        from sklearn.linear_model import Ridge

        fit, players, drawn = _Fit(Ridge(alpha=self.ridge), ridge=self.ridge), coalitions.shape[1], iter(coalitions)
        lime = captum.attr.Lime(
            game,
            interpretable_model=fit,
            similarity_func=get_exp_kernel_similarity_function("cosine", kernel_width=self.width),
            perturb_func=lambda _inputs, **_others: next(drawn).long().unsqueeze(0),
        )
        values: Tensor = lime.attribute(
            torch.ones(1, players),
            torch.zeros(1, players),
            n_samples=len(coalitions),
            perturbations_per_eval=len(coalitions),
            return_input_shape=False,
        )
        return Fitted(values.flatten(), float(fit.model.intercept_), fit.stderr)
