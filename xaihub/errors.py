"""What a user sees when something expected goes wrong: one sentence and one hint."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "ExplainerRefused",
    "InputError",
    "MetricRefused",
    "MissingExtra",
    "ModelError",
    "OutputError",
    "ParameterError",
    "PluginError",
    "TrainingError",
    "UnknownName",
    "XaihubError",
    "did_you_mean",
]


class XaihubError(Exception):
    """An expected failure, shown as one line.

    Attributes:
        message: What went wrong, lower case, without a full stop.
        hint: What to do about it, or an empty string.
        exit_code: The process's exit status: 1 for a failure, 2 for wrong usage.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        """Store `message` and `hint`, each folded onto one line."""
        self.message = " ".join(message.split())
        self.hint = " ".join(hint.split())
        super().__init__(self.message)

    def __str__(self) -> str:
        """Return the sentence with its hint in brackets."""
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UnknownName(XaihubError):
    """A name that nothing is registered under."""

    exit_code = 2


class ParameterError(XaihubError):
    """A parameter that does not exist, or a value of the wrong type or range."""

    exit_code = 2


class InputError(XaihubError):
    """An image, folder or class name that cannot be used."""


class ModelError(XaihubError):
    """A model that cannot be built, loaded or trusted."""


class OutputError(XaihubError):
    """A result that cannot be written or read."""


class ExplainerRefused(XaihubError):
    """A method that would be wrong on this model, with the reason."""


class MetricRefused(XaihubError):
    """A score that would have no meaning, with the reason."""


class TrainingError(XaihubError):
    """Training that cannot go on, with the reason."""


class MissingExtra(XaihubError):
    """An optional dependency that is not installed."""


class PluginError(XaihubError):
    """A plugin that cannot be used, or does not keep to what it promised."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the `known` names nearest to `name`, or an empty string."""
    by_lower = {item.lower(): item for item in known}
    near = get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    if not near:
        near = [item for item in by_lower if len(name) > 2 and name.lower() in item][:3]
    return f"did you mean {' or '.join(repr(by_lower[item]) for item in near)}?" if near else ""
