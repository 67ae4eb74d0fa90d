"""The list of known plugins, which comes with xaihub; its source is docs/plugins.toml."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import msgspec

_COPY = Path(__file__).with_name("plugins.toml")  # in an installed wheel
_SOURCE = Path(__file__).resolve().parents[2] / "docs" / "plugins.toml"  # in a checkout
_Line = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]


@dataclass(frozen=True, kw_only=True)
class Known:
    """One known plugin.

    Attributes:
        name: The name of its distribution.
        summary: One line.
        adds: What it registers.
        licence: An SPDX expression.
        source: The address of its source; in the list of a checkout, relative to docs/.
        install: What follows `xaihub plugins install`.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=100)]
    summary: _Line
    adds: tuple[Literal["explainer", "metric", "objective", "baseline", "adapter", "head", "model", "command"], ...]
    licence: _Line
    source: _Line
    install: _Line


class _File(msgspec.Struct, forbid_unknown_fields=True):
    plugin: list[Known] = []


@cache
def known() -> tuple[Known, ...]:
    """Return the known plugins, by name."""
    file = _COPY if _COPY.is_file() else _SOURCE
    found = msgspec.toml.decode(file.read_bytes(), type=_File).plugin
    return tuple(sorted(found, key=lambda item: item.name))


def search(words: Iterable[str]) -> list[Known]:
    """Return the known plugins whose name, summary or kinds contain every word, in any case."""
    wanted = [word.lower() for word in words]
    texts = {item: " ".join((item.name, item.summary, *item.adds)).lower() for item in known()}
    return [item for item, text in texts.items() if all(word in text for word in wanted)]
