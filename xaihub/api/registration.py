"""Registration of explainers, metrics, objectives and baselines from a script or a notebook, and use without a name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, TypeVar, cast, overload

from xaihub.api.parameters import Setting
from xaihub.errors import ParameterError, PluginError
from xaihub.hub import Hub, session
from xaihub.hub.authoring import KINDS, known_fields, record_of, snake
from xaihub.hub.host import NAME
from xaihub.params import convert
from xaihub.specs import BaselineSpec, Spec

T = TypeVar("T")


@cache
def default_hub() -> Hub:
    """Return the hub with all installed plugins, created on first use."""
    return Hub()


@overload
def register(thing: T, /, **facts: Any) -> T: ...
@overload
def register(*, name: str = "", **facts: Any) -> Callable[[T], T]: ...
def register(thing: Any = None, /, **facts: Any) -> Any:
    """Register a class or a function under a name that every function of this process accepts; a decorator.

    A class derived from `Explainer`, `GlobalExplainer`, `Metric` or `Objective` is called by its name in snake case,
    and its attributes `summary`, `limits`, `needs`, ... fill its record, as in a file for `--plugin`. Any other
    function is a baseline: `function(model, image)` returns a `xaihub.masking.Removal`. Registering a name again, as
    when a cell of a notebook runs again, replaces the object.

    Args:
        thing: The class or function; without it, a decorator is returned.
        facts: Fields of the record, such as `name` or `summary`, in place of the class attributes.

    Raises:
        PluginError: The object is none of these, is abstract, or its name is unusable or belongs to a plugin.

    Example::

        @xaihub.register
        class TimesInput(xaihub.Explainer):
            def attribute(self, model, inputs, target): ...

        xaihub.explain("cat.jpg", explainer="times_input")
    """
    if thing is None:
        return partial(register, **facts)
    record, kind = _kind(thing)
    attributes = {**_attributes(thing, record), **facts}
    known = sorted(known_fields(record))
    unknown = [name for name in facts if name not in known]
    if unknown:
        raise PluginError(f"a record has no field {unknown[0]!r}", hint=f"known: {', '.join(known)}")
    spec = record_of(record, thing.__name__, thing.__doc__, attributes)
    if not NAME.fullmatch(spec.name):
        hint = "a name has at most 100 letters, digits and _ . : + @ -"
        raise PluginError(f"{spec.name!r:.120} cannot be a name", hint=hint)
    registry = getattr(default_hub(), kind)
    holder = registry.find(spec.name)
    if holder is not None and holder.plugin != session.PLUGIN:
        hint = "give another: @xaihub.register(name=...)"
        raise PluginError(f"{registry.noun} {spec.name!r} belongs to plugin {holder.plugin!r}", hint=hint)
    session.add(spec, thing)
    return thing


def _kind(thing: Any) -> tuple[type[Spec], str]:
    """Return the record of a class or function, and the attribute of the hub that holds such records."""
    from xaihub.explainers.explainer import Explainer
    from xaihub.metric import Metric
    from xaihub.objective import Objective
    from xaihub.ranking.explainer import GlobalExplainer

    bases = (Explainer, GlobalExplainer, Metric, Objective)
    base = next((base for base in bases if isinstance(thing, type) and issubclass(thing, base)), None)
    if base is not None:
        if inspect.isabstract(thing):
            missing = ", ".join(sorted(getattr(thing, "__abstractmethods__", ())))
            raise PluginError(f"{thing.__name__} is abstract", hint=f"define {missing}")
        return KINDS[base.__name__]
    if inspect.isfunction(thing):
        return BaselineSpec, "baselines"
    known = ", ".join(base.__name__ for base in bases)
    raise PluginError(
        f"{getattr(thing, '__name__', repr(thing)[:60])} cannot be registered",
        hint=f"derive a class from {known}, or give a function of (model, image)",
    )


def _attributes(thing: Any, record: type[Spec]) -> dict[str, Any]:
    """Return the attributes of a class that fill its record, without those of the base class in xaihub."""
    if not isinstance(thing, type):
        return {}
    own = [vars(part) for part in thing.__mro__ if not part.__module__.startswith("xaihub.") and part is not object]
    return {name: part[name] for part in reversed(own) for name in known_fields(record) if name in part}


def instance(kind: type, make: Callable[..., T], given: Any, values: Mapping[str, Any]) -> T:
    """Return an explainer, or an object of another kind, given by name, by class or as it is.

    Args:
        kind: The base class.
        make: Makes it by name, such as `Hub.get_explainer`.
        given: What the user gave.
        values: Parameters; only for a name or a class.

    Raises:
        ParameterError: It is of another kind, or a parameter is wrong.
    """
    if isinstance(given, str):
        return make(given, **values)
    noun = kind.__name__
    if isinstance(given, kind):
        if values:
            what = f"{', '.join(values)} cannot be combined with an {noun.lower()} instance"
            raise ParameterError(what, hint="pass them to its constructor")
        return cast("T", given)
    if isinstance(given, type) and issubclass(given, kind):
        made: Any = given(**convert(given, values))
        made.name = made.name or session.name_of(given) or snake(given.__name__)
        return cast("T", made)
    shown = given.__name__ if isinstance(given, type) else type(given).__name__
    raise ParameterError(
        f"{shown} is not an {noun.lower()}", hint=f"give a name, or a class derived from xaihub.{noun} or its instance"
    )


def names(given: str | type | Sequence[str | type]) -> tuple[str, ...]:
    """Return the names of what was given by name or as a registered class.

    Raises:
        ParameterError: A class is not registered.
    """
    found = []
    for item in [given] if isinstance(given, (str, type)) else given:
        name = item if isinstance(item, str) else session.name_of(item)
        if not name:
            shown = getattr(item, "__name__", type(item).__name__)
            raise ParameterError(f"{shown} has no name", hint="decorate the class with @xaihub.register")
        found.append(name)
    return tuple(found)


def settings(params: Mapping[str, Any] | None) -> list[Setting]:
    """Return parameters, such as {"masks": 500, "rise.cell": 8}, as the settings of `-p`."""
    found = []
    for key, value in (params or {}).items():
        who, _, name = key.rpartition(".")
        found.append(Setting(name, value, who))
    return found
