"""Parameters of methods: declared once in the class; read, converted and validated here."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from keyword import iskeyword
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import Meta

from xaihub.errors import ParameterError, did_you_mean
from xaihub.specs import Origin

T = TypeVar("T")
Precision = Literal["f32", "bf16", "f16"]  # of a network's layers

__all__ = [
    "Execution", "Meta", "Parameter", "Parametrised", "Passes", "Precision", "Unless", "When", "convert", "parameters"
]  # fmt: skip


class When:
    """In `Annotated`: the parameter has an effect only while other parameters have certain values.

    `When(unit="patches")` names one value, `When(family=("keep_p", "rise"))` several, and `When(a=1, b=2)` requires
    both. A parameter that differs from its default where it has no effect is refused; its description and the
    conformance kit use the same declaration. Several conditions in one `Annotated` must all hold.
    """

    def __init__(self, **values: Any) -> None:
        self.values = {name: value if isinstance(value, tuple) else (value,) for name, value in values.items()}

    def holds(self, given: Mapping[str, Any]) -> bool:
        """Return whether the parameter has an effect, with the values of all parameters by name."""
        return all(given[name] in allowed for name, allowed in self.values.items())

    def __str__(self) -> str:
        """The condition, such as "only with unit=patches"."""
        return f"only with {self._written}"

    @property
    def _written(self) -> str:
        return " and ".join(
            f"no {name}" if allowed in (("",), (None,)) else f"{name}={_listed(allowed)}"
            for name, allowed in self.values.items()
        )


class Unless(When):
    """In `Annotated`: the opposite of `When`: the parameter has no effect while others have all of these values."""

    def holds(self, given: Mapping[str, Any]) -> bool:
        """Return whether the parameter has an effect, with the values of all parameters by name."""
        return not super().holds(given)

    def __str__(self) -> str:
        """The condition, such as "not with family=pdp"."""
        return f"not with {self._written}"


class Execution:
    """In `Annotated`: the parameter changes the cost of a result, such as its number of passes, but not the result."""


class Passes:
    """In `Annotated`: the parameter is the number of passes, so a budget of passes (`--budget`) can set it.

    A budget of n passes sets the parameter to (n - extra) / each, rounded down, and the parameters `others` to the
    given values, such as `tolerance=0.0` where passes would otherwise be saved. With `maximum`, the method may use
    fewer. A backward pass counts as two. The conformance kit checks that the budget is kept to 2 %.
    """

    def __init__(self, *, each: int = 1, extra: int = 0, maximum: bool = False, **others: Any) -> None:
        self.each, self.extra, self.maximum, self.others = each, extra, maximum, others

    def values(self, name: str, passes: int) -> dict[str, Any]:
        """Return the parameters for a budget: that called `name`, which is marked, and the others."""
        return {name: (passes - self.extra) // self.each, **self.others}


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a method.

    Attributes:
        name: The keyword argument.
        annotation: Its type, with `msgspec.Meta` constraints where given.
        default: Its default value.
    """

    name: str
    annotation: Any
    default: Any

    @property
    def shown(self) -> str:
        """The name that users type: without the underscore that distinguishes it from a Python keyword."""
        bare = self.name.removesuffix("_")
        return bare if iskeyword(bare) else self.name

    @property
    def type(self) -> str:
        """The type, as shown to users."""
        return _shown(self.annotation)

    @property
    def description(self) -> str:
        """Its meaning, and the conditions under which it has an effect."""
        text = next((meta.description for meta in _marks(self.annotation, Meta) if meta.description), "")
        return f"{text.removesuffix('.')} ({'; '.join(map(str, self.conditions))})." if self.conditions else text

    @property
    def examples(self) -> list[Any]:
        """Values that the author gave as examples, in `Meta(examples=[...])`."""
        return next((list(meta.examples) for meta in _marks(self.annotation, Meta) if meta.examples), [])

    @property
    def conditions(self) -> list[When]:
        """The conditions under which it has an effect; all must hold."""
        return _marks(self.annotation, When)

    def is_a(self, alias: Any) -> bool:
        """Return whether it is annotated with an `Annotated` alias such as `BaselineName`, with or without more."""
        return set(alias.__metadata__) <= set(getattr(self.annotation, "__metadata__", ()))

    @property
    def passes(self) -> Passes | None:
        """How it follows from a budget of passes, if it does."""
        return next(iter(_marks(self.annotation, Passes)), None)

    @property
    def execution(self) -> bool:
        """Whether it changes only the cost of a result."""
        return bool(_marks(self.annotation, Execution))


@typing.dataclass_transform(kw_only_default=True, eq_default=False)
class Parametrised:
    """A class whose parameters are its annotated attributes, which its constructor takes as keyword arguments.

    A subclass becomes a keyword-only dataclass; `_state: T = field(default=..., init=False)` declares private state.
    A subclass may instead write its own constructor, which takes keyword arguments with defaults and stores each under
    its own name. A parameter named after a Python keyword ends with an underscore, which users omit: `-p lambda=1`
    sets `lambda_`.

    Attributes:
        name: The registered name; set by the hub.
        origin: The plugin that registered it; set by the hub.
        noun: What it is, for messages.
    """

    name = ""
    origin = Origin()
    noun: ClassVar[str] = "method"

    def __init_subclass__(cls, **options: Any) -> None:
        """Turn a subclass that declares parameters into a dataclass that keeps this class's `eq` and `repr`."""
        super().__init_subclass__(**options)
        # A bare `steps = 10` changes the default of an inherited parameter, as it would that of any attribute.
        own, inherited = inspect.get_annotations(cls), getattr(cls, "__dataclass_fields__", {})
        for name in [name for name, item in inherited.items() if item.init and name in vars(cls) and name not in own]:
            cls.__annotations__[name] = typing.get_type_hints(cls, include_extras=True)[name]
        if any("ClassVar" not in str(hint) for hint in inspect.get_annotations(cls).values()):
            dataclass(kw_only=True, eq=False, repr=False)(cls)

    @property
    def described(self) -> str:
        """The plugin, and what the method is in it, for messages about its faults."""
        who = f"{self.noun} {(self.name or type(self).__name__)!r}"
        return f"plugin {self.origin.label}, {who}" if self.origin.plugin else who

    @property
    def parameters(self) -> dict[str, Any]:
        """The value of each parameter, by name."""
        method: type = type(self)
        return {name: getattr(self, name) for name in parameters(method)}

    def check_parameters(self) -> str:
        """Validate every parameter and return the name to use in messages.

        Raises:
            ParameterError: A parameter is of the wrong type or out of range, or has no effect with the others.
        """
        who = self.name or type(self).__name__
        method: type = type(self)
        given = self.parameters
        convert(method, given, who=who)
        for item in parameters(method).values():
            failed = next((condition for condition in item.conditions if not condition.holds(given)), None)
            if failed is not None and given[item.name] != item.default:
                others = ", ".join(f"{name}={_written(given[name])}" for name in failed.values)
                raise ParameterError(
                    f"parameter {item.shown!r} of {who} has no effect with {others}",
                    hint="omit it" if isinstance(failed, Unless) else f"omit it; it is used {failed}",
                )
        return who

    def __repr__(self) -> str:
        """The class and its parameters, as a constructor call."""
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.parameters.items())})"


@cache  # called for every explanation
def parameters(method: type) -> Mapping[str, Parameter]:
    """Return the parameters of a class by name, from the signature of its constructor."""
    # Annotations of a dataclass are resolved class by class, because a field may come from another module.
    constructor = method.__init__  # type: ignore[misc]
    written = getattr(constructor, "__code__", None) and constructor.__code__.co_filename != "<string>"
    hints = typing.get_type_hints(constructor if written else method, include_extras=True)
    arguments = inspect.signature(method).parameters.values()
    found = {
        item.name: Parameter(name=item.name, annotation=hints.get(item.name, Any), default=item.default)
        for item in arguments
    }
    return MappingProxyType(found)


def convert(method: type, values: Mapping[str, Any], *, who: str = "") -> dict[str, Any]:
    """Convert `values` (strings from a command line, or objects) to the types of the method's parameters.

    Raises:
        ParameterError: A parameter is unknown, or a value has the wrong type or is out of range.
    """
    known = parameters(method)
    who = who or method.__name__
    converted = {}
    for given, value in values.items():
        # A Python keyword such as "lambda" cannot be an argument's name, so the method calls it `lambda_`.
        name = f"{given}_" if iskeyword(given) else given
        if name not in known:
            names = [item.shown for item in known.values()]
            hint = did_you_mean(given, names) or f"it has {', '.join(names) or 'no parameters'}"
            raise ParameterError(f"{who} has no parameter {given!r}", hint=hint)
        converted[name] = _convert(value, known[name], who)
    return converted


def _marks(annotation: Any, kind: type[T]) -> list[T]:
    return [mark for mark in getattr(annotation, "__metadata__", ()) if isinstance(mark, kind)]


def _listed(values: tuple[Any, ...]) -> str:
    *most, last = map(_written, values)
    return f"{', '.join(most)} or {last}" if most else last


def _written(value: Any) -> str:
    """Return a value as users type it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _convert(value: Any, parameter: Parameter, who: str) -> Any:
    annotation = parameter.annotation
    bare = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    if isinstance(value, str) and value.strip().lower() in ("none", "null") and type(None) in get_args(bare):
        return None
    try:
        return msgspec.convert(value, type=annotation, strict=not isinstance(value, str))
    except msgspec.ValidationError as error:
        reason = str(error)
        if get_origin(bare) is Literal:
            reason = f"expected one of {', '.join(map(str, get_args(bare)))}"
        raise ParameterError(
            f"parameter {parameter.shown!r} of {who} cannot be {value!r}: {reason[0].lower()}{reason[1:]}",
            hint=f"it must be {parameter.type}; default: {parameter.default!r}",
        ) from error


def _shown(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        inner, *metas = get_args(annotation)
        limits = [text for meta in metas if isinstance(meta, Meta) for text in _limits(meta)]
        return f"{_shown(inner)} {' and '.join(limits)}".strip()
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if get_origin(annotation) in (Union, types.UnionType):
        return " | ".join(_shown(part) for part in get_args(annotation))
    if annotation is type(None):
        return "none"
    return getattr(annotation, "__name__", str(annotation)) if get_origin(annotation) is None else str(annotation)


def _limits(meta: Meta) -> list[str]:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return [f"{sign} {getattr(meta, key)}" for key, sign in signs.items() if getattr(meta, key) is not None]
