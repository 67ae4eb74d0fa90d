"""The door for vectors: attributions of numpy and torch models, by points or, if asked for, by an exact route."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xaihub import ExplainerRefused, ModelError, ParameterError
from xaihub_first_principles import families, masks
from xaihub_first_principles.exact import Network, exact_integrals, exact_normal
from xaihub_first_principles.measures import Measured, MeasureFamily, integrate

__all__ = ["VECTOR_FAMILIES", "attribute_vector"]

Model = nn.Module | Callable[[Any], Any]


def attribute_vector(
    model: Model,
    x: Any,
    *,
    family: str = "pdp",
    background: Any = None,
    normal: tuple[Any, Any] | None = None,
    output: int = 0,
    p: float = 0.5,
    samples: int = 1000,
    centre: bool = False,
    exact: bool = False,
    seed: int = 0,
) -> Measured:
    """Attribute a model of a vector at `x`.

    Args:
        model: A torch module of (n, d) rows; or a function of an (n, d) array, such as `predict` of scikit-learn.
        x: (d,) what is explained. `length_weighted` and `axis_lebesgue` take the cube [0, 1]^d for granted.
        family: One of `VECTOR_FAMILIES`.
        background: (n, d) data, of which families on masks take replacements; its mean is where `fd_ig` and
            `axis_dirac` start. Families that can do without data start from 0.
        normal: Mean (d,) and covariance (d, d): X is normal, in place of data, for `pdp`, `independent` (exact only)
            and `conditional`.
        output: Which column, if the model returns several.
        p: Of keep-p and RISE.
        samples: Points a feature, or masks in all.
        centre: Subtract the mean under the base law.
        exact: Only an exact route, or a refusal with the reason.
        seed: Of every random choice.

    Raises:
        ParameterError: An argument is of the wrong shape, out of range, missing or unknown.
        ExplainerRefused: No exact route applies, or the family is no measure.
        ModelError: The model's answers are not finite.
    """
    question = _question(x, background, normal, p=p, samples=samples, centre=centre, exact=exact)
    if exact and question.normal is not None:
        if family not in ("pdp", "independent", "conditional") or centre:
            raise ExplainerRefused(f"no exact route for {family}{' centred' * centre} under a normal law")
        return exact_normal(_network(model, output), family, question.x, *question.normal)
    made = question.family(family)
    if exact and (made.quadrature or not _finite(made)):
        return exact_integrals(_network(model, output), made, question.x)
    found = integrate(_function(model, output), made, question.x, seed=seed)
    if exact and not found.exact:
        raise ExplainerRefused(
            f"no exact route for {family} on {len(question.x)} features: its measure has too many points",
            hint=f"families on masks are exact up to {masks.ENUMERATE_UP_TO} features",
        )
    return found


@dataclass(frozen=True, kw_only=True)
class _Question:
    """What a family needs to know of a vector."""

    x: Tensor
    data: Tensor | None
    normal: tuple[Tensor, Tensor] | None
    p: float
    samples: int
    centre: bool
    exact: bool

    @property
    def start(self) -> Tensor:
        """Where lines start: the mean of the data, or 0."""
        return torch.zeros_like(self.x) if self.data is None else self.data.mean(0)

    @property
    def background(self) -> Tensor:
        """The data.

        Raises:
            ParameterError: There is none.
        """
        if self.data is None:
            raise ParameterError("this family needs data", hint="give background, an array of (n, d)")
        return self.data

    def family(self, name: str) -> MeasureFamily:
        """Return the family called `name`.

        Raises:
            ParameterError: No family has that name.
        """
        if name in families.NOT_MEASURES:
            return families.NotAMeasure(name)
        if name not in _BUILDERS:
            raise ParameterError(f"no family is named {name!r}", hint=", ".join(_BUILDERS))
        return _BUILDERS[name](self)

    def budget(self) -> int:
        """Return how many masks are asked: all, if the result must be exact and that is possible."""
        bases = 1 if self.data is None else len(self.data)
        every = 2 ** len(self.x) * bases
        return every if self.exact and len(self.x) <= masks.ENUMERATE_UP_TO else self.samples


def _question(x: Any, background: Any, normal: tuple[Any, Any] | None, **others: Any) -> _Question:
    here = _tensor(x)
    if here.ndim != 1 or not len(here):
        raise ParameterError(f"x has the shape {tuple(here.shape)}, and one row of d values is explained at a time")
    d = len(here)
    data = None if background is None else _tensor(background)
    if data is not None and (data.ndim != 2 or data.shape[1] != d or not len(data)):
        raise ParameterError(f"the background has the shape {tuple(data.shape)}, not (n, {d})")
    law = None if normal is None else (_tensor(normal[0]), _tensor(normal[1]))
    if law is not None and (law[0].shape != (d,) or law[1].shape != (d, d)):
        raise ParameterError(f"the normal law has the shapes {tuple(law[0].shape)} and {tuple(law[1].shape)}")
    for name, values in (("x", here), ("the background", data), *(("the normal law", part) for part in law or ())):
        if values is not None and not bool(values.isfinite().all()):
            raise ParameterError(f"{name} has values that are not finite", hint="fill or drop missing values")
    if not 0 < others["p"] < 1:
        raise ParameterError(f"p cannot be {others['p']!r}", hint="a number between 0 and 1")
    if others["samples"] < 1:
        raise ParameterError(f"samples cannot be {others['samples']!r}", hint="a number from 1")
    return _Question(x=here, data=data, normal=law, **others)


def _tensor(values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu().double()
    return torch.from_numpy(np.array(values, dtype=np.float64))


def _conditional(q: _Question) -> MeasureFamily:
    if q.normal is not None:
        return families.GaussianConditional(*q.normal, samples=q.samples, centre=q.centre)
    return families.Conditional(q.background, centre=q.centre)


def _keep(kind: type[masks.KeepP]) -> Callable[[_Question], MeasureFamily]:
    return lambda q: kind(budget=q.budget(), background=q.data, p=q.p, centre=q.centre)


_BUILDERS: dict[str, Callable[[_Question], MeasureFamily]] = {
    "conditional": _conditional,
    "independent": lambda q: families.Independent(q.background, samples=q.samples, centre=q.centre),
    "pdp": lambda q: families.PartialDependence(q.background, centre=q.centre),
    "axis_dirac": lambda q: families.AxisDirac(baseline=q.start, centre=q.centre),
    "axis_lebesgue": lambda q: families.AxisLebesgue(centre=q.centre),
    "length_weighted": lambda q: families.LengthWeighted(samples=q.samples, centre=q.centre),
    "keep_p": _keep(masks.KeepP),
    "signed_keep_p": _keep(masks.SignedKeepP),
    "shapley": lambda q: masks.Shapley(budget=q.budget(), background=q.data),
    "occlusion": lambda q: masks.Occlusion(background=q.data),
    "rise": _keep(masks.RISE),
    "lime_fixed": lambda q: masks.LIME(budget=q.budget(), background=q.data),
    "smoothgrad": lambda q: families.SmoothGradStein(samples=q.samples),
    "fd_ig": lambda q: families.FiniteDifferenceIG(baseline=q.start),
}
VECTOR_FAMILIES = tuple(_BUILDERS)


def _finite(family: MeasureFamily) -> bool:
    """Whether points alone can be exact: not for laws with a density."""
    return not isinstance(family, (families.LengthWeighted, families.SmoothGradStein, families.Independent))


def _network(model: Model, output: int) -> Network:
    if not isinstance(model, nn.Module):
        raise ExplainerRefused("an exact integral needs a torch module whose kinks can be seen, not a function")
    return Network.of(model, output)


def _function(model: Model, output: int) -> Callable[[Tensor], Tensor]:
    """Return the model as a function of (n, d) float64 tensors to (n,) float64."""
    if isinstance(model, nn.Module):
        weight = next(model.parameters(), torch.zeros((), dtype=torch.float64))

        def ask(y: Tensor) -> Any:
            was = model.training
            model.eval()
            try:
                with torch.no_grad():
                    return model(y.to(weight))
            finally:
                model.train(was)
    else:

        def ask(y: Tensor) -> Any:
            return model(y.numpy())

    def f(y: Tensor) -> Tensor:
        answers = _tensor(ask(y))
        if answers.ndim not in (1, 2) or len(answers) != len(y):
            raise ParameterError(f"the model returned the shape {tuple(answers.shape)} for {len(y)} rows")
        if answers.ndim == 2 and not -answers.shape[1] <= output < answers.shape[1]:
            raise ParameterError(f"the model has {answers.shape[1]} outputs, and there is no output {output}")
        chosen = answers if answers.ndim == 1 else answers[:, output]
        if not bool(chosen.isfinite().all()):
            raise ModelError("the model returned values that are not finite")
        return chosen

    return f
