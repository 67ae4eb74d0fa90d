"""Parameters: declared once, as annotated attributes or in a constructor."""

from __future__ import annotations

import sys
from dataclasses import field
from types import ModuleType
from typing import Annotated, Any, Literal

import pytest

from xaihub import Meta
from xaihub.errors import ParameterError
from xaihub.params import Parametrised, convert, parameters


class Method:
    def __init__(
        self,
        *,
        steps: Annotated[int, Meta(ge=1, le=500, description="Points on the path.")] = 50,
        keep: Annotated[float, Meta(gt=0, lt=1)] = 0.5,
        mode: Literal["fast", "exact"] = "fast",
        signed: bool = False,
        layer: str | None = None,
        size: int | None = None,
    ) -> None: ...


class Bare:
    pass


def test_parameters_come_from_the_signature() -> None:
    found = parameters(Method)
    assert list(found) == ["steps", "keep", "mode", "signed", "layer", "size"]
    assert [item.type for item in found.values()] == [
        "int >= 1 and <= 500", "float > 0 and < 1", "fast | exact", "bool", "str | none", "int | none",
    ]  # fmt: skip
    assert found["steps"].description == "Points on the path."
    assert found["keep"].description == ""
    assert [item.default for item in found.values()] == [50, 0.5, "fast", False, None, None]


def test_a_class_without_a_constructor_has_no_parameters() -> None:
    assert parameters(Bare) == {}
    assert convert(Bare, {}) == {}
    with pytest.raises(ParameterError, match="Bare has no parameter 'x'.*it has no parameters"):
        convert(Bare, {"x": "1"})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("steps", "20", 20),
        ("keep", "0.25", 0.25),
        ("mode", "exact", "exact"),
        ("signed", "true", True),
        ("signed", "0", False),
        ("layer", "layer4", "layer4"),
        ("layer", "none", None),
        ("size", "None", None),
        ("size", "3", 3),
    ],
)
def test_text_becomes_the_parameters_type(name: str, text: str, value: Any) -> None:
    converted = convert(Method, {name: text})[name]
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("steps", "0", ">= 1"),
        ("steps", 501, "<= 500"),
        ("steps", "many", "expected `int`"),
        ("steps", 2.5, "expected `int`"),
        ("steps", True, "expected `int`"),
        ("steps", "none", "expected `int`"),
        ("steps", None, "expected `int`"),
        ("keep", "1", "< 1"),
        ("keep", "nan", "> 0"),
        ("keep", float("nan"), "> 0"),
        ("keep", "inf", "< 1"),
        ("mode", "slow", "expected one of fast, exact"),
        ("mode", 3, "expected one of fast, exact"),
        ("signed", "maybe", "expected `bool`"),
        ("layer", 3, "expected `str | null`"),
    ],
)
def test_a_wrong_value_is_quoted_with_the_reason_and_the_default(name: str, value: Any, reason: str) -> None:
    with pytest.raises(ParameterError) as caught:
        convert(Method, {name: value}, who="method")
    assert caught.value.message.startswith(f"parameter {name!r} of method cannot be {value!r}: ")
    assert reason in caught.value.message
    assert (
        caught.value.hint
        == f"it must be {parameters(Method)[name].type}; default: {parameters(Method)[name].default!r}"
    )
    assert caught.value.exit_code == 2


def test_an_unknown_parameter_suggests_a_near_one() -> None:
    with pytest.raises(ParameterError, match=r"method has no parameter 'step' \(did you mean 'steps'\?\)"):
        convert(Method, {"step": 1}, who="method")


def test_an_unknown_parameter_like_no_other_lists_all() -> None:
    with pytest.raises(ParameterError, match="it has steps, keep, mode, signed, layer, size"):
        convert(Method, {"zzz": 1})


class Weighted:
    def __init__(self, *, lambda_: float = 1.0, plain: int = 0) -> None:
        self.lambda_, self.plain = lambda_, plain


def test_a_name_that_python_keeps_for_itself_is_typed_without_its_underscore() -> None:
    assert convert(Weighted, {"lambda": "0.5"}) == {"lambda_": 0.5}
    assert convert(Weighted, {"lambda_": 2}) == {"lambda_": 2.0}
    assert [item.shown for item in parameters(Weighted).values()] == ["lambda", "plain"]
    with pytest.raises(ParameterError, match=r"has no parameter 'lambd' \(did you mean 'lambda'\?\)"):
        convert(Weighted, {"lambd": 1})


class Declared(Parametrised):
    steps: Annotated[int, Meta(ge=1, description="Points on the path.")] = 50
    _seen: list[int] | None = field(default=None, init=False)


def test_annotated_attributes_are_parameters_and_private_state_is_not() -> None:
    method = Declared(steps=3)

    assert method.parameters == {"steps": 3}
    assert repr(method) == "Declared(steps=3)"
    assert method._seen is None
    assert parameters(Declared)["steps"].description == "Points on the path."


# A module whose annotations are strings, with names that the module of a subclass does not have.
ELSEWHERE = """
from __future__ import annotations
from typing import Annotated
from xaihub.params import Meta, Parametrised

Count = Annotated[int, Meta(ge=1, description="Number of masks.")]

class Base(Parametrised):
    masks: Count = 4
"""


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> type[Parametrised]:
    module = ModuleType("params_elsewhere")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(ELSEWHERE, module.__dict__)  # noqa: S102 - the text above
    found: type[Parametrised] = module.Base
    return found


def test_parameters_are_inherited_from_another_module(base: type[Parametrised]) -> None:
    class Derived(base):  # type: ignore[valid-type, misc]
        keep: Annotated[float, Meta(gt=0, description="Fraction to keep.")] = 0.5

    assert [(item.name, item.type, item.description) for item in parameters(Derived).values()] == [
        ("masks", "int >= 1", "Number of masks."),
        ("keep", "float > 0", "Fraction to keep."),
    ]
    assert Derived(masks=2).parameters == {"masks": 2, "keep": 0.5}
    with pytest.raises(ParameterError, match=">= 1"):
        convert(Derived, {"masks": "0"})


def test_a_subclass_may_write_its_own_constructor(base: type[Parametrised]) -> None:
    class Derived(base):  # type: ignore[valid-type, misc]
        def __init__(self, *, points: int = 2) -> None:
            self.points = points

    assert Derived(points=3).parameters == {"points": 3}


def test_a_bare_assignment_gives_an_inherited_parameter_another_default() -> None:
    class Base(Parametrised):
        steps: Annotated[int, Meta(ge=1, description="Steps.")] = 5

    class Finer(Base):
        steps = 50

    assert (Base().steps, Finer().steps, Finer(steps=7).steps) == (5, 50, 7)
    assert parameters(Finer)["steps"].default == 50
    assert parameters(Finer)["steps"].description == "Steps."
