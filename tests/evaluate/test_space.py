"""What is searched of a method's parameters, and the settings that are tried."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest

from xaihub import Hub
from xaihub.errors import ParameterError
from xaihub.evaluation.space import Space, space
from xaihub.params import Execution, Meta, Parametrised, Passes, When, parameters


class Method(Parametrised):
    """Parameters of every kind."""

    size: Annotated[int, Meta(ge=1)] = 8
    keep: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    rate: float = 2.0
    ratio: Annotated[float, Meta(ge=0)] = 0.0
    kind: Literal["a", "b"] = "a"
    only_b: Annotated[int, Meta(ge=1, le=4), When(kind="b")] = 2
    flag: bool = True
    fill: Annotated[str, Meta(examples=["white", "blur"])] = "mean"
    layer: str | None = None
    refine: Annotated[int, Meta(ge=1, le=100)] | None = None
    passes: Annotated[int, Meta(ge=1), Passes(tolerance=0.0)] = 100
    tolerance: Annotated[float, Meta(ge=0)] = 0.25
    chunk: Annotated[int, Meta(ge=1), Execution()] = 16


def searched(**given: Any) -> Space:
    return space(Method, {name: [text] for name, text in given.items()}, who="method")


def written(found: Space) -> dict[str, str]:
    return dict(str(one).split("=", 1) for one in found.dimensions)


def test_the_declarations_say_what_is_tried_and_nothing_changes_the_cost() -> None:
    found = searched()
    assert written(found) == {
        "size": "2..32", "keep": "0.02..0.98", "rate": "0.5..8", "kind": "a,b", "only_b": "1..4", "flag": "false,true",
        "fill": "mean,white,blur",
    }  # fmt: skip
    assert found.unknown == ["ratio", "layer", "refine"]


def test_what_is_typed_fixes_lists_or_bounds_a_parameter() -> None:
    found = searched(size="4", keep="0.2,0.4", ratio="0.1..0.3", layer="x,none", passes="10,20", refine="2..9")
    assert found.fixed == {"size": 4}
    assert {"keep": "0.2,0.4", "ratio": "0.1..0.3", "layer": "x,none", "passes": "10,20", "refine": "2..9"}.items() <= (
        written(found).items()
    )
    assert "size" not in written(found)
    assert found.unknown == []


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("sise", "1", "method has no parameter 'sise'"),
        ("size", "0", "cannot be '0'"),
        ("keep", "0.5,2", "cannot be '2'"),
        ("size", "9..4", "size=9..4 of method is not a range"),
        ("flag", "0..1", "flag=0..1 of method is not a range"),
    ],
)
def test_what_cannot_be_tried_is_refused(name: str, text: str, reason: str) -> None:
    with pytest.raises(ParameterError, match=reason.replace("(", r"\(")):
        searched(**{name: text})


def test_settings_are_different_valid_reproducible_and_begin_with_the_defaults() -> None:
    found = searched(rate="3")
    settings = found.settings(40, seed=1)
    assert settings[0] == {"rate": 3.0}
    assert len(settings) == 40
    assert len({repr(sorted(one.items())) for one in settings}) == 40
    for values in settings:
        Method(**values).check_parameters()
        assert not {"passes", "tolerance", "chunk", "layer"} & values.keys()
    assert settings == found.settings(40, seed=1)
    assert settings != found.settings(40, seed=2)
    assert min(one.get("size", 8) for one in settings) <= 3
    assert max(one.get("size", 8) for one in settings) >= 24


def test_few_combinations_are_all_tried() -> None:
    fixed = {"size": "4", "keep": "0.5", "rate": "2", "fill": "mean"}
    found = searched(**fixed, kind="a,b", only_b="1,2,3", flag="true,false").settings(20, seed=0)
    # With kind=a, the values of only_b make no difference.
    own = {(one.get("kind", "a"), one.get("only_b", 2), one.get("flag", True)) for one in found}
    assert own == {
        (kind, only, flag) for kind, only in (("a", 2), ("b", 1), ("b", 2), ("b", 3)) for flag in (True, False)
    }
    assert len(found) == len(own)


@pytest.mark.parametrize("name", ["convad", "first_principles", "rise", "shapley_values"])
def test_an_explainer_takes_its_settings(name: str) -> None:
    hub = Hub()
    method = hub.explainers.get(name).load()
    defaults = {name: item.default for name, item in parameters(method).items()}
    for values in space(method, {}, who=name).settings(6, seed=0)[1:]:
        assert hub.get_explainer(name, **values).parameters == {**defaults, **values}
