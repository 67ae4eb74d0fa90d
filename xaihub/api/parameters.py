"""`-p NAME=VALUE`: settings, and which of several explainers, metrics and objectives each is for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from xaihub.errors import ParameterError, did_you_mean
from xaihub.hub.registry import Registry
from xaihub.specs import Spec

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """A value for one parameter.

    Attributes:
        name: The parameter, as `xaihub show` lists it.
        value: As it was typed.
        who: The only explainer, metric or objective to set it for, or "" for every selected one that has it.
        optional: Whether it may have no effect, because nothing that is selected has it.
    """

    name: str
    value: str
    who: str = ""
    optional: bool = False

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Read NAME=VALUE or WHO.NAME=VALUE.

        Raises:
            ParameterError: The text has another form.
        """
        key, equals, value = text.partition("=")
        who, _, name = key.strip().rpartition(".")
        if not equals or not name:
            raise ParameterError(f"{text!r} is not NAME=VALUE")
        return cls(name, value.strip(), who)


def assign(settings: Sequence[Setting], selected: Sequence[Spec]) -> list[dict[str, str]]:
    """Return the parameters of each selected explainer, metric or objective; of equal settings the last one counts.

    Raises:
        ParameterError: Nothing selected is named so, or has such a parameter.
    """
    from xaihub.params import parameters

    taken: list[dict[str, str]] = [{} for _ in selected]
    if not settings:
        return taken
    known = [{item.shown for item in parameters(spec.load()).values()} for spec in selected]
    for setting in settings:
        named = [at for at, spec in enumerate(selected) if setting.who in ("", spec.name, f"{spec.plugin}/{spec.name}")]
        names = list(dict.fromkeys(selected[at].name for at in named))
        takers = [at for at in named if setting.name in known[at]]
        waived = setting.optional and not (names and setting.who)
        if not names and not waived:
            every = [spec.name for spec in selected]
            hint = did_you_mean(setting.who, every) or f"selected: {', '.join(every) or 'none'}"
            what = f"nothing named {setting.who!r} is selected" if setting.who else "nothing is selected"
            raise ParameterError(f"{what}, so {setting.name}={setting.value} has no effect", hint=hint)
        if not takers and not waived:
            every = sorted(set().union(*(known[at] for at in named)))
            hint = did_you_mean(setting.name, every) or f"known: {', '.join(every) or 'none'}"
            subject = f"none of {', '.join(names)}" if len(names) > 1 else names[0]
            raise ParameterError(
                f"{subject} has {'a' if len(names) > 1 else 'no'} parameter {setting.name!r}", hint=hint
            )
        for at in takers:
            taken[at][setting.name] = setting.value
    return taken


def make(
    registry: Registry[Any],
    maker: Callable[..., T],
    names: Sequence[str],
    settings: Sequence[Setting],
    *,
    beside: Sequence[Spec] = (),
) -> list[T]:
    """Make one object per distinct name, with its settings, such as `make(hub.explainers, hub.get_explainer, ...)`.

    Some of the settings may be for what is made `beside` these.

    Raises:
        UnknownName: The registry does not have a name.
        ParameterError: As `assign`, or a value has the wrong type or range.
    """
    specs = [registry.get(name) for name in dict.fromkeys(names)]
    taken = assign(settings, [*specs, *beside])
    return [maker(spec.name, **own) for spec, own in zip(specs, taken, strict=False)]
