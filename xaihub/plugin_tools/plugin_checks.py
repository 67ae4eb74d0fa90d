"""Checks of a plugin as a distribution: it loads, its metadata and licence are complete, its card is its own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.requirements import Requirement

from xaihub.errors import MissingExtra, XaihubError
from xaihub.hub import Hub
from xaihub.hub.host import OWN_DISTRIBUTION, PluginInfo
from xaihub.plugin_tools.overview import canonical, file_of
from xaihub.plugin_tools.scaffold import KINDS, NO_TEXT, render
from xaihub.testing.catalogue import applies, check, require
from xaihub.testing.kit import registries

LEAST_WORDS = 5  # of a sentence from a template; shorter ones are what anybody may write


@dataclass
class PluginSubject:
    """A plugin with the metadata of its distribution, and what it registered."""

    info: PluginInfo
    hub: Hub

    @property
    def distribution(self) -> metadata.Distribution:
        """The installed distribution.

        Raises:
            NotApplicable: The plugin is a single file, or part of xaihub.
        """
        name = self.info.distribution
        applies(bool(name), "it is not installed as a distribution")
        applies(canonical(name) != OWN_DISTRIBUTION, "it is part of xaihub")
        return metadata.distribution(name)


@check("plugin", advice="correct it")
def loads(subject: PluginSubject) -> None:
    """The host reports no problem, and what has no checks of its own can be loaded."""
    checked = {id(spec) for registry in registries(subject.hub) for spec in registry}
    broken = []
    for spec in (spec for registry in subject.hub.registries.values() for spec in registry):
        if spec.plugin == subject.info.name and spec.target and id(spec) not in checked:
            try:
                spec.load()
            except MissingExtra:
                continue  # a problem of this environment, not of the plugin
            except XaihubError as error:
                broken.append(str(error))
    problems = [*subject.info.problems, *broken]
    require(not problems, "; ".join(problems))


@check("plugin", advice="fill in `[project]` in pyproject.toml")
def metadata_is_complete(subject: PluginSubject) -> None:
    """The distribution has a summary, a description, a version of Python, and requires a version of xaihub."""
    dist = subject.distribution
    facts = dist.metadata
    require(bool(facts["Summary"]), "it has no summary", advice="give `description`")
    require(
        bool(_card(subject).strip()), "it has no description", advice='write README.md, and give `readme = "README.md"`'
    )
    require(
        bool(facts["Requires-Python"]), "it declares no version of Python", advice='give `requires-python = ">=3.11"`'
    )
    wanted = [Requirement(line) for line in dist.requires or []]
    own = [line for line in wanted if canonical(line.name) == OWN_DISTRIBUTION]
    lowest = any(part.operator in (">=", "==", "~=", ">") for line in own for part in line.specifier)
    require(lowest, "it does not require a version of xaihub", advice='give `dependencies = ["xaihub>=X.Y"]`')


@check(
    "plugin",
    advice='give `license = "..."`, an SPDX expression such as Apache-2.0, and put its text next to it as LICENSE',
)
def licence_is_declared(subject: PluginSubject) -> None:
    """The distribution declares its licence as a valid SPDX expression and contains its text."""
    dist = subject.distribution
    expression = dist.metadata["License-Expression"]
    require(bool(expression), "it declares no licence expression")
    try:
        canonicalize_license_expression(expression)
    except InvalidLicenseExpression as error:
        require(False, f"its licence {expression!r} is not an SPDX expression ({error})")
    texts = [dist.read_text(f"licenses/{name}") or "" for name in dist.metadata.get_all("License-File") or []]
    require(any(texts), "it does not contain the text of its licence")
    require(not any(text.startswith(NO_TEXT) for text in texts), "its LICENSE does not contain the text yet")


@check("plugin", advice="describe your own method: write README.md and the record anew")
def no_scaffold_text_is_left(subject: PluginSubject) -> None:
    """The card and the records are not those of the project template, unless the method is the template's."""
    file = file_of(subject.info.module)
    method = file.parent / "method.py" if file is not None else None
    applies(method is not None and method.is_file(), "it has no method.py")
    assert method is not None  # noqa: S101 - for the type checker
    own = _plain(method.read_text(encoding="utf-8", errors="replace"))
    templates = {kind: _template(subject.info.name, kind) for kind in KINDS}
    applies(own not in {files["method"] for files in templates.values()}, "its method is the project template's")
    specs = [spec for registry in subject.hub.registries.values() for spec in registry]
    texts = {"card": _card(subject)} | {
        f"record of {spec.name!r}": " ".join((spec.summary, getattr(spec, "limits", ""), getattr(spec, "formula", "")))
        for spec in specs
        if spec.plugin == subject.info.name
    }
    for what, text in texts.items():
        words = _plain(text)
        for line in (line for files in templates.values() for line in _sentences(files["texts"])):
            require(
                line not in words, f"its {what} still says {line!r}, which the project template says of another method"
            )


def _card(subject: PluginSubject) -> str:
    """Return the card: README.md next to the hooks, or else the distribution's description."""
    file = file_of(subject.info.module)
    own = file.parent / "README.md" if file is not None else Path()
    if own.is_file():
        return own.read_text(encoding="utf-8", errors="replace")
    return str(subject.distribution.metadata.json.get("description", ""))


@cache
def _template(name: str, kind: str) -> dict[str, str]:
    """Return the method of a new project, and the texts that describe it."""
    files = render(name, kind)
    snake = name.replace("-", "_")
    card = files["README.md"].partition("## Develop")[0].partition("```\n\n")[2]
    limits = re.findall(r'limits="([^"]*)"', files[f"xaihub_{snake}/__init__.py"])
    return {
        "method": _plain(files.get(f"xaihub_{snake}/method.py", "")),
        "texts": "\n\n".join([KINDS[kind], card, *limits]),
    }


def _sentences(text: str) -> list[str]:
    """Return the lines of a card that are long enough to be recognised."""
    blocks = [_plain(block) for block in re.split(r"\n\n|\n- ", text) if not block.startswith("#")]
    return [block for block in blocks if len(block.split()) >= LEAST_WORDS]


def _plain(text: str) -> str:
    return " ".join(text.split())
