"""Attributions of NumPy and torch models of a vector, by points or, if requested, by an exact route."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xaihub import ExplainerRefused, ModelError, ParameterError, evaluation_mode
from xaihub_first_principles import families, mask_families
from xaihub_first_principles.measures import MeasureFamily, MeasureResult, integrate
from xaihub_first_principles.vectors import feature_laws
from xaihub_first_principles.vectors.exact import Network, exact_integrals, exact_normal

Model = nn.Module | Callable[[Any], Any]
SAMPLED = (families.LengthWeighted, families.SmoothGradStein, feature_laws.Independent)  # never exact by points


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
) -> MeasureResult:
    """Attribute a model of a vector at `x`.

    Args:
        model: A torch module of (n, d) rows, or a function of an (n, d) array, such as `predict` of scikit-learn.
        x: (d,) the explained input. `length_weighted` and `axis_lebesgue` assume inputs in [0, 1]^d.
        family: One of `VECTOR_FAMILIES`.
        background: (n, d) data: the replacements of families on masks; its mean is the baseline of `fd_ig` and
            `axis_dirac`. Without it, families that do not need data use 0.
        normal: Mean (d,) and covariance (d, d) of a normal law of X, instead of data, for `pdp`, `independent` (exact
            only) and `conditional`.
        output: The column, if the model returns several.
        p: Of keep-p and RISE.
        samples: Points per feature, or the total number of masks.
        centre: Subtract the mean under the base law.
        exact: Use an exact route only, or refuse with the reason.
        seed: Of every random choice.

    Raises:
        ParameterError: An argument has the wrong shape, is out of range, missing or unknown.
        ExplainerRefused: No exact route applies, or the family is not a measure.
        ModelError: The model's outputs are not finite.
    """
    problem = _problem(x, background, normal, p=p, samples=samples, centre=centre, exact=exact)
    if exact and problem.normal is not None:
        if family not in ("pdp", "independent", "conditional") or centre:
            raise ExplainerRefused(f"no exact route for {family}{' centred' * centre} under a normal law")
        return exact_normal(_network(model, output), family, problem.x, *problem.normal)
    made = problem.family(family)
    if exact and (made.quadrature or isinstance(made, SAMPLED)):
        return exact_integrals(_network(model, output), made, problem.x)
    found = integrate(_function(model, output), made, problem.x, seed=seed)
    if exact and not found.exact:
        raise ExplainerRefused(
            f"no exact route for {family} on {len(problem.x)} features: its measure has too many points",
            hint=f"families on masks are exact up to {mask_families.ENUMERATE_UP_TO} features",
        )
    return found


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """The checked arguments that determine a family."""

    x: Tensor
    data: Tensor | None
    normal: tuple[Tensor, Tensor] | None
    p: float
    samples: int
    centre: bool
    exact: bool

    @property
    def baseline(self) -> Tensor | None:
        """The mean of the data, if there are any."""
        return None if self.data is None else self.data.mean(0)

    @property
    def background(self) -> Tensor:
        """The data.

        Raises:
            ParameterError: There are none.
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
            return families.NotAMeasure(method=name)
        if name not in _BUILDERS:
            raise ParameterError(f"no family is named {name!r}", hint=", ".join(_BUILDERS))
        return _BUILDERS[name](self)

    @property
    def budget(self) -> int:
        """The number of masks: all, if the result must be exact and that is feasible."""
        every = 2 ** len(self.x) * (1 if self.data is None else len(self.data))
        return every if self.exact and len(self.x) <= mask_families.ENUMERATE_UP_TO else self.samples


def _problem(x: Any, background: Any, normal: tuple[Any, Any] | None, **others: Any) -> _Problem:
    here = _tensor(x)
    if here.ndim != 1 or not len(here):
        raise ParameterError(f"x has the shape {tuple(here.shape)}, but must be one row of d values")
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
    return _Problem(x=here, data=data, normal=law, **others)


def _tensor(values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu().double()
    return torch.from_numpy(np.array(values, dtype=np.float64))


def _conditional(q: _Problem) -> MeasureFamily:
    if q.normal is not None:
        mean, covariance = q.normal
        return feature_laws.GaussianConditional(mean=mean, covariance=covariance, samples=q.samples, centre=q.centre)
    return feature_laws.Conditional(background=q.background, centre=q.centre)


def _keep(kind: type[mask_families.KeepP], q: _Problem) -> MeasureFamily:
    return kind(budget=q.budget, background=q.data, p=q.p, centre=q.centre)


_BUILDERS: dict[str, Callable[[_Problem], MeasureFamily]] = {
    "conditional": _conditional,
    "independent": lambda q: feature_laws.Independent(background=q.background, samples=q.samples, centre=q.centre),
    "pdp": lambda q: feature_laws.PartialDependence(background=q.background, centre=q.centre),
    "axis_dirac": lambda q: families.AxisDirac(baseline=q.baseline, centre=q.centre),
    "axis_lebesgue": lambda q: families.AxisLebesgue(centre=q.centre),
    "length_weighted": lambda q: families.LengthWeighted(samples=q.samples, centre=q.centre),
    "keep_p": partial(_keep, mask_families.KeepP),
    "signed_keep_p": partial(_keep, mask_families.SignedKeepP),
    "shapley": lambda q: mask_families.Shapley(budget=q.budget, background=q.data),
    "occlusion": lambda q: mask_families.Occlusion(background=q.data),
    "rise": partial(_keep, mask_families.RISE),
    "lime_fixed": lambda q: mask_families.LIME(budget=q.budget, background=q.data),
    "smoothgrad": lambda q: families.SmoothGradStein(samples=q.samples),
    "fd_ig": lambda q: families.FiniteDifferenceIG(baseline=q.baseline),
}
VECTOR_FAMILIES = tuple(_BUILDERS)


def _network(model: Model, output: int) -> Network:
    if not isinstance(model, nn.Module):
        raise ExplainerRefused("an exact integral needs a torch module, whose breakpoints are known, not a function")
    return Network.of(model, output)


def _function(model: Model, output: int) -> Callable[[Tensor], Tensor]:
    """Return the model as a function of (n, d) float64 tensors to (n,) float64."""

    def f(y: Tensor) -> Tensor:
        if isinstance(model, nn.Module):  # in the precision and on the device of its weights
            with torch.no_grad(), evaluation_mode(model):
                outputs = _tensor(model(y.to(next(model.parameters(), y))))
        else:
            outputs = _tensor(model(y.numpy()))
        if outputs.ndim not in (1, 2) or len(outputs) != len(y):
            raise ParameterError(f"the model returned the shape {tuple(outputs.shape)} for {len(y)} rows")
        if outputs.ndim == 2 and not -outputs.shape[1] <= output < outputs.shape[1]:
            raise ParameterError(f"the model has {outputs.shape[1]} outputs, and there is no output {output}")
        chosen = outputs if outputs.ndim == 1 else outputs[:, output]
        if not bool(chosen.isfinite().all()):
            raise ModelError("the model returned values that are not finite")
        return chosen

    return f
