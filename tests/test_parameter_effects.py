"""Parameters declare when they have an effect: refusal, descriptions and the conformance check follow."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
import torch
from torch import Tensor

from xaihub import Case, Execution, Explainer, Meta, Metric, Model, ParameterError, ResolvedTarget, Unless, When
from xaihub.params import parameters
from xaihub.testing.catalogue import CheckResult, run
from xaihub.testing.explainer_subject import ExplainerSubject
from xaihub.testing.kit import checks
from xaihub.testing.metric_subject import MetricSubject

CHECK = "every_parameter_has_an_effect"


class Scaled(Explainer):
    """The gradient, scaled in one of two ways."""

    way: Annotated[Literal["power", "factor"], Meta(description="How.")] = "power"
    power: Annotated[float, Meta(gt=0, description="Exponent."), When(way="power")] = 1.0
    factor: Annotated[float, Meta(description="Factor."), When(way="factor")] = 2.0
    offset: Annotated[float, Meta(ge=0, description="Added to a factor."), Unless(way="power")] = 0.0
    batch: Annotated[int, Meta(ge=1, description="Further forward passes."), Execution()] = 1

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        """Return (B, 3, H, W) values."""
        for _ in range(self.batch):
            model(inputs)
        inputs.requires_grad_()
        values = torch.autograd.grad(target.score(model(inputs)).sum(), inputs)[0]
        return self._scaled(values)

    def _scaled(self, values: Tensor) -> Tensor:
        if self.way == "power":
            return values.sign() * values.abs() ** self.power
        return values * self.factor + self.offset


class NeverReads(Scaled):
    unused: Annotated[int, Meta(ge=1, description="Nothing.")] = 4


class DeclaresNoCondition(Scaled):
    power: Annotated[float, Meta(gt=0, description="Exponent.")] = 1.0


class ClaimsToBeExecution(Scaled):
    batch: Annotated[int, Meta(ge=1, description="Nothing."), Execution()] = 1

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        """Return the values without further passes."""
        inputs.requires_grad_()
        return self._scaled(torch.autograd.grad(target.score(model(inputs)).sum(), inputs)[0])


class Mean(Metric):
    """The mean of the map's positive part."""

    power: Annotated[float, Meta(gt=0, description="Exponent.")] = 1.0
    above: Annotated[float, Meta(description="Nothing.")] = 0.0

    def score(self, case: Case) -> float:
        """Return the mean."""
        return float((case.heat.clamp(min=0) ** self.power).mean())


def _checked(subject: ExplainerSubject | MetricSubject) -> CheckResult:
    kind: Literal["explainer", "metric"] = "explainer" if isinstance(subject, ExplainerSubject) else "metric"
    (item,) = checks(kind, [CHECK])
    return run(item, subject, "it")


def test_a_parameter_without_effect_is_refused_by_name_with_what_disables_it() -> None:
    with pytest.raises(ParameterError) as caught:
        Scaled(way="factor", power=2.0).check_parameters()
    assert caught.value.message == "parameter 'power' of Scaled has no effect with way=factor"
    assert caught.value.hint == "omit it; it is used only with way=power"
    with pytest.raises(ParameterError, match=r"'offset' of Scaled has no effect with way=power \(omit it\)"):
        Scaled(offset=1.0).check_parameters()


def test_a_default_is_never_refused_nor_is_a_parameter_with_an_effect() -> None:
    for explainer in (Scaled(), Scaled(way="factor"), Scaled(way="factor", factor=3.0, offset=1.0), Scaled(power=2.0)):
        assert explainer.check_parameters() == "Scaled"


def test_the_description_states_the_condition() -> None:
    shown = {name: item.description for name, item in parameters(Scaled).items()}
    assert shown["power"] == "Exponent (only with way=power)."
    assert shown["offset"] == "Added to a factor (not with way=power)."
    assert shown["way"] == "How."


def test_several_values_are_listed() -> None:
    assert str(When(family=("a", "b", "c"), measure="", on=True, size=None)) == (
        "only with family=a, b or c and no measure and on=true and no size"
    )


def test_a_method_whose_parameters_all_have_an_effect_passes() -> None:
    assert _checked(ExplainerSubject(Scaled)).outcome == "passed"


@pytest.mark.parametrize(
    ("method", "finding"),
    [
        (NeverReads, "the parameter 'unused' has no effect"),
        (DeclaresNoCondition, "the parameter 'power' has no effect with way=factor"),
        (ClaimsToBeExecution, "the parameter 'batch' has no effect"),
    ],
)
def test_a_parameter_without_effect_is_found(method: type[Explainer], finding: str) -> None:
    result = _checked(ExplainerSubject(method))
    assert result.outcome == "failed"
    assert finding in result.advice
    assert result.advice.count("has no effect") == len([part for part in result.advice.split("; ") if finding in part])


def test_a_metrics_parameter_without_effect_is_found() -> None:
    result = _checked(MetricSubject(Mean))
    assert result.outcome == "failed"
    assert "'above' has no effect" in result.advice
    assert "'power'" not in result.advice
