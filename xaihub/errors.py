"""Errors that users see: one line that says what went wrong, and a hint that says what to do."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "EngineError",
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
    """Nothing is registered under this name."""

    exit_code = 2


class ParameterError(XaihubError):
    """A parameter does not exist, or its value has the wrong type or is out of range."""

    exit_code = 2


class InputError(XaihubError):
    """An image, folder or class name cannot be used."""


class ModelError(XaihubError):
    """A model cannot be built or loaded, or its outputs cannot be used."""


class OutputError(XaihubError):
    """A result cannot be written or read."""


class ExplainerRefused(XaihubError):
    """A method is not valid for this model; the message gives the reason."""


class MetricRefused(XaihubError):
    """A score would be meaningless here; the message gives the reason."""


class TrainingError(XaihubError):
    """Training cannot continue; the message gives the reason."""


class EngineError(XaihubError):
    """The workers of an evaluation cannot be used."""


class MissingExtra(XaihubError):
    """An optional dependency is not installed."""


class PluginError(XaihubError):
    """A plugin cannot be used, or breaks its contract."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint with the `known` names closest to `name`, or an empty string."""
    from difflib import get_close_matches  # here, because most commands need it never

    by_lower = {item.lower(): item for item in known}
    near = get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    if not near:
        near = [item for item in by_lower if len(name) > 2 and name.lower() in item][:3]
    return f"did you mean {' or '.join(repr(by_lower[item]) for item in near)}?" if near else ""
