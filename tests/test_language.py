"""A hint to authors: wordings that readers stumble over, with what to write instead (see CONTRIBUTING.md)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from xaihub.cli import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
INSTEAD = {
    r"\bpictures?\b": "image (the input), map (the result) or figure (the PNG)",
    r"\b(?:forwards|backwards)\b": "forward passes, backward passes",
    r"(?<!\b[Tt]here )\b(?:is|are) no (?!longer\b|other\b|more\b|less\b|better\b|worse\b)[a-z]+": "is not a, are not",
    r"\bso (?:many|much) (?!that\b)[a-z]+": "N, such as 'every N steps'",
    r"\b(?:rows?|one|bytes|cells|pixels|passes|value) an? (?:side|row|model|image|pass|step|class|line|map)\b": "per",
    r"(?:^|[.(|] )Most (?:[a-z]+ )*[a-z]+s\b(?=\.| that\b| of\b)": "Maximum number of",
    r"\bspeaks? (?:for|against)\b": "supports, opposes",
    r"\bhidden (?:pixels|regions|cells|patches)\b": "masked",
}
# Deliberate uses, by page: text that the line contains.
ALLOWED: dict[str, str] = {}


def texts() -> Iterator[tuple[str, str]]:
    """Yield the lines of pages, outside code, and the help texts of commands, each with where it is."""
    for file in PAGES:
        name = str(file.relative_to(ROOT))
        prose = CODE.sub(lambda block: "\n" * block.group().count("\n"), file.read_text("utf-8"))
        for number, line in enumerate(prose.splitlines(), start=1):
            yield f"{name}:{number}", re.sub(r"`[^`]*`", "``", line)
    for path, command in commands("xaihub", cli):
        for line in (command.help or "").splitlines():
            yield f"{path} --help", line
        for option in command.params:
            yield f"{path} --help ({option.name})", getattr(option, "help", None) or ""


def commands(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, inner in getattr(command, "commands", {}).items():
            yield from commands(f"{path} {name}", inner)


@pytest.mark.parametrize("pattern", INSTEAD)
def test_pages_and_help_use_the_terms_of_the_field(pattern: str) -> None:
    found = [
        f"{place}: {hit.group()!r}"
        for place, line in texts()
        for hit in re.finditer(pattern, line)
        if ALLOWED.get(place.partition(":")[0], "\n") not in line
    ]

    assert not found, f"write {INSTEAD[pattern]!r} instead, or add a deliberate use to ALLOWED:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("text", "hits"),
    [
        ("a picture of it", 1),
        ("500 forwards", 1),
        ("'x' is no plugin", 1),
        ("it is no longer there", 0),
        ("every so many steps", 1),
        ("so much that it counts", 0),
        ("one row a model", 1),
        ("a row per model", 0),
        ("what speaks for the class", 1),
        ("Most boxes that a search splits", 1),
        ("Most of that is noise", 0),
        ("the fill of hidden pixels", 1),
    ],
)
def test_the_patterns_find_what_they_are_for(text: str, hits: int) -> None:
    assert sum(len(re.findall(pattern, text)) for pattern in INSTEAD) == hits
