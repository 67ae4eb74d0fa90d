"""The parameters of a method: declared once in its class, read, converted and checked here."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from keyword import iskeyword
from types import MappingProxyType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta

from xaihub.errors import ParameterError, did_you_mean

__all__ = ["Meta", "Parameter", "Parametrised", "convert", "parameters"]


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a method.

    Attributes:
        name: The keyword argument.
        annotation: Its type, with `msgspec.Meta` constraints where given.
        default: Its default value.
        type: The type as shown to users.
        description: What it means.
    """

    name: str
    annotation: Any
    default: Any
    type: str
    description: str

    @property
    def shown(self) -> str:
        """What users type for it: without the underscore that sets it apart from a word of Python's own."""
        bare = self.name.removesuffix("_")
        return bare if iskeyword(bare) else self.name


@typing.dataclass_transform(kw_only_default=True, eq_default=False)
class Parametrised:
    """A class whose parameters are its annotated attributes, which its constructor takes as keyword arguments.

    A subclass becomes a keyword-only dataclass. One that needs more may write its own constructor, which takes keyword
    arguments with defaults and stores each under its own name. A parameter named after a Python keyword ends with an
    underscore, which users omit: `-p lambda=1` sets `lambda_`.

    Attributes:
        name: The name under which it is registered; set by the hub.
    """

    name = ""

    def __init_subclass__(cls, **options: Any) -> None:
        """Make a dataclass of a subclass that declares parameters; `eq` and `repr` stay those of this class."""
        super().__init_subclass__(**options)
        # A bare `steps = 10` gives an inherited parameter another default, as it would for any attribute.
        for name in (
            getattr(cls, "__dataclass_fields__", {}).keys() & vars(cls).keys() - inspect.get_annotations(cls).keys()
        ):
            cls.__annotations__[name] = typing.get_type_hints(cls, include_extras=True)[name]
        if any("ClassVar" not in str(hint) for hint in inspect.get_annotations(cls).values()):
            dataclass(kw_only=True, eq=False, repr=False)(cls)

    @property
    def parameters(self) -> dict[str, Any]:
        """The value of each constructor argument."""
        method: type = type(self)
        return {name: getattr(self, name) for name in parameters(method)}

    def check_parameters(self) -> str:
        """Return the name to use in messages, after checking every parameter.

        Raises:
            ParameterError: A parameter is of the wrong type or out of range.
        """
        who = self.name or type(self).__name__
        convert(type(self), self.parameters, who=who)
        return who

    def __repr__(self) -> str:
        """The class and its parameters, as one would write them."""
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.parameters.items())})"


@cache  # asked for at every explanation
def parameters(method: type) -> Mapping[str, Parameter]:
    """Return the parameters of a class by name, from its constructor's signature."""
    # A dataclass may inherit fields from another module, whose names its own constructor does not know.
    constructor = method.__init__  # type: ignore[misc]
    written = getattr(constructor, "__code__", None) and constructor.__code__.co_filename != "<string>"
    hints = typing.get_type_hints(constructor if written else method, include_extras=True)
    found = {}
    for name, argument in inspect.signature(method).parameters.items():
        annotation = hints.get(name, Any)
        found[name] = Parameter(
            name=name,
            annotation=annotation,
            default=argument.default,
            type=_shown(annotation),
            description=_description(annotation),
        )
    return MappingProxyType(found)


def convert(method: type, values: Mapping[str, Any], *, who: str = "") -> dict[str, Any]:
    """Convert `values` (strings from a command line, or objects) to the types of the method's parameters.

    Raises:
        ParameterError: An unknown parameter, or a value of the wrong type or range.
    """
    known = parameters(method)
    who = who or method.__name__
    converted = {}
    for given, value in values.items():
        # "lambda" cannot be an argument's name in Python, so a method calls it `lambda_`.
        name = f"{given}_" if iskeyword(given) else given
        if name not in known:
            names = [item.shown for item in known.values()]
            hint = did_you_mean(given, names) or f"it has {', '.join(names) or 'no parameters'}"
            raise ParameterError(f"{who} has no parameter {given!r}", hint=hint)
        converted[name] = _convert(value, known[name], who)
    return converted


def _convert(value: Any, parameter: Parameter, who: str) -> Any:
    if isinstance(value, str) and value.strip().lower() in ("none", "null") and _accepts_none(parameter.annotation):
        return None
    try:
        return msgspec.convert(value, type=parameter.annotation, strict=not isinstance(value, str))
    except msgspec.ValidationError as error:
        reason = str(error)
        if "Invalid enum value" in reason or _choices(parameter.annotation):
            reason = f"expected one of {', '.join(map(str, _choices(parameter.annotation)))}"
        raise ParameterError(
            f"parameter {parameter.name!r} of {who} cannot be {value!r}: {reason[0].lower()}{reason[1:]}",
            hint=f"it is {parameter.type}, by default {parameter.default!r}",
        ) from error


def _accepts_none(annotation: Any) -> bool:
    return type(None) in get_args(_bare(annotation))


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _choices(annotation: Any) -> tuple[Any, ...]:
    bare = _bare(annotation)
    return get_args(bare) if get_origin(bare) is Literal else ()


def _description(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return next((m.description for m in get_args(annotation)[1:] if isinstance(m, Meta) and m.description), "")
    return ""


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
