"""Perturbation methods: captum chooses the coalitions and fits, the masking engine evaluates the model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

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
    ResolvedTarget,
    current_generator,
    forked_generator,
)
from xaihub.masking import BaselineName, Features, Windows, coalition_scores, make_features, make_removal

# Maximum number of coalitions that captum builds at one time, each with one float per player.
ABLATIONS = 1024

FeatureName = Annotated[
    str,
    Meta(description="Pixels masked together: grid:N (N x N cells), patches:N, superpixels:N, or pixels."),
]
Output = Annotated[Literal["logit", "probability"], Meta(description="The class score that is explained.")]
Game = Callable[[Tensor], Tensor]


class _Perturbation(Explainer):
    """Values of features, assigned to their pixels."""

    baseline: BaselineName = "grey"
    output: Output = "logit"

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Attribution:
        """Return (B, 1, H, W): each pixel carries its feature's value."""
        maps, gaps, players = [], [], 0
        details: dict[str, float] = {}
        for row, image in enumerate(inputs):
            features = self.players(model, image)
            game = self._game(model, image, features, target[row : row + 1])
            values, intercept = self.values(game, features.count)
            maps.append(features.spread(values))
            players = features.count
            if self.completeness:
                ends = game(torch.stack([torch.zeros(players), torch.ones(players)]))
                gaps.append((values.sum() - (ends[1] - ends[0])).abs())
                intercept = float(ends[0])
            if intercept is not None:
                details["intercept"] = intercept
        return Attribution(
            values=torch.stack(maps).unsqueeze(1),
            completeness_gap=torch.stack(gaps) if gaps else None,
            details={"players": players, **details},
        )

    @abstractmethod
    def players(self, model: Model, image: Tensor) -> Features:
        """Return the features that are masked together."""

    @abstractmethod
    def values(self, game: Game, players: int) -> tuple[Tensor, float | None]:
        """Return (d,) values per player, and the fitted score of the fully masked image if the method fits one."""

    def _game(self, model: Model, image: Tensor, features: Features, target: ResolvedTarget) -> Game:
        # Each image of a batch gets the noise it would get alone.
        with forked_generator():
            removal = make_removal(self.baseline, model, image)

        def score(logits: Tensor) -> Tensor:
            return target.score(logits, output=self.output)

        def game(coalitions: Tensor) -> Tensor:
            # Random coalitions repeat, above all the small ones of KernelSHAP: evaluate each once.
            distinct, where = coalitions.float().unique(dim=0, return_inverse=True)
            return coalition_scores(model, image, features, distinct, removal=removal, score=score)[where]

        return game


class _Ablation(_Perturbation):
    parallel = True

    def values(self, game: Game, players: int) -> tuple[Tensor, None]:
        """Return the drop in score when one player is masked."""
        values: Tensor = captum.attr.FeatureAblation(game).attribute(
            torch.ones(1, players), torch.zeros(1, players), perturbations_per_eval=ABLATIONS
        )
        return values[0], None


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

    samples: Annotated[int, Meta(ge=4, description="Random coalitions; each costs at most one forward pass.")] = 1000
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


class _Fit:
    """A linear model of scikit-learn, as captum uses it; captum's own wrapper draws from the global generator."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def fit(self, data: DataLoader[Any]) -> None:
        coalitions, scores, weights = (part.numpy() for part in data.dataset.tensors)  # type: ignore[attr-defined]
        self.model.fit(coalitions, scores, sample_weight=weights)

    def representation(self) -> Tensor:
        return torch.as_tensor(self.model.coef_, dtype=torch.float32).view(1, -1)


class _KernelShap(captum.attr.KernelShap):  # type: ignore[misc]
    def __init__(self, game: Game) -> None:
        from sklearn.linear_model import LinearRegression

        super().__init__(game)
        self.interpretable_model = _Fit(LinearRegression())

    def kernel_shap_perturb_generator(self, original_inp: Tensor, **kwargs: Any) -> Iterator[Tensor]:  # noqa: ARG002
        """Draw coalitions as captum does, but from the explanation's own generator."""
        players, sizes, generator = (
            kwargs["num_interp_features"],
            kwargs["num_select_distribution"],
            current_generator(),
        )
        yield torch.ones(1, players, dtype=torch.long)
        yield torch.zeros(1, players, dtype=torch.long)
        while True:
            size = int(torch.multinomial(sizes.probs, 1, replacement=True, generator=generator))
            ranks = torch.randn(1, players, generator=generator)
            yield (ranks > ranks.kthvalue(players - size).values).long()


def _half(_inputs: Tensor, **kwargs: Any) -> Tensor:
    """Draw a coalition as captum does for LIME, but from the explanation's own generator."""
    return torch.bernoulli(torch.full((1, kwargs["num_interp_features"]), 0.5), generator=current_generator()).long()


class KernelShap(_Sampled):
    """Shapley values of features by weighted regression (Lundberg and Lee 2017, arXiv 1705.07874, Sec. 4.1)."""

    completeness = True

    def values(self, game: Game, players: int) -> tuple[Tensor, None]:
        """Return the coefficients of the regression with Shapley weights; it fits the masked image's score exactly."""
        values: Tensor = _KernelShap(game).attribute(
            torch.ones(1, players),
            torch.zeros(1, players),
            n_samples=self.samples,
            perturbations_per_eval=self.samples,
            return_input_shape=False,
        )
        return values.flatten(), None


class Lime(_Sampled):
    """A local linear model of the score over features (Ribeiro, Singh, Guestrin 2016, arXiv 1602.04938, Sec. 3)."""

    output: Output = "probability"
    width: Annotated[float, Meta(gt=0, description="Width of the similarity kernel on cosine distance.")] = 0.25
    ridge: Annotated[float, Meta(ge=0, description="Strength of the ridge penalty.")] = 1.0

    def values(self, game: Game, players: int) -> tuple[Tensor, float]:
        """Return the coefficients and the intercept of the local linear model."""
        from sklearn.linear_model import Ridge

        ridge = Ridge(alpha=self.ridge)
        lime = captum.attr.Lime(
            game,
            interpretable_model=_Fit(ridge),
            similarity_func=get_exp_kernel_similarity_function("cosine", kernel_width=self.width),
            perturb_func=_half,
        )
        values: Tensor = lime.attribute(
            torch.ones(1, players),
            torch.zeros(1, players),
            n_samples=self.samples,
            perturbations_per_eval=self.samples,
            return_input_shape=False,
        )
        return values.flatten(), float(ridge.intercept_)
