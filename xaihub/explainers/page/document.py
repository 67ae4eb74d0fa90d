"""An HTML document in one file: templates with escaping, our script and style inline, nothing loaded from outside."""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
from collections.abc import Mapping
from functools import cache
from importlib import metadata, resources
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from xaihub.explainers.heat import ALPHA
from xaihub.records import plain

if TYPE_CHECKING:
    from jinja2 import Environment

HEIGHT = 640  # CSS pixels of a page inside a notebook

_HOME = os.path.expanduser("~") + os.sep  # noqa: PTH111 - pathlib's raises where there is none
_START = r"(?:file:/+|~?/|[A-Za-z]:[\\/]|\\\\)"  # of an absolute path, of either kind of system
_WHOLE = re.compile(rf"(\w{{2,}}:)?({_START}.*?)((?:: |, |\n).*)?", re.DOTALL)
_QUOTED = re.compile(rf"(['\"])({_START}(?:\\.|(?!\1)[^\\\n])*)\1")
_BARE = re.compile(rf"(?:(?<![\w/.~:-])|(?<=\w{{2}}:)){_START}(?:[^\\/\s'\"<>]+[\\/])+")


# What the template and the script read of every page.
DATA: Mapping[str, Any] = {
    "models": [], "explainers": [], "metrics": [], "images": [], "records": [], "points": [], "curves": [],
    "alpha": ALPHA,
}  # fmt: skip
PARTS: Mapping[str, Any] = {
    "lead": "", "links": [], "boards": [], "findings": [], "controls": [], "failures": [], "figures": [], "tables": [],
    "details": [], "commands": [], "remarks": [], "facts": [], "judged": False, "split": False,
    "budgets": False, "checkpoints": [],
}  # fmt: skip


def document(title: str, *, data: Mapping[str, Any] = DATA, **parts: Any) -> str:
    """Return a page with the parts that the template `page.html` names; every text in them is escaped.

    No absolute path is left in any text, whatever it came from: only the last part stays. A policy in the page lets the
    browser run our script only, and load nothing from another host.
    """
    script, style = _asset("page.js"), _asset("page.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _environment().get_template("page.html")
    shown = pathless(
        {**PARTS, **parts, "title": title, "data": {**DATA, **data}, "version": metadata.version("xaihub")}
    )
    return page.render(**shown, script=script, style=style, script_digest=digest) + "\n"


def framed(page: str, *, height: int = HEIGHT) -> str:
    """Return a page as an element for a notebook, which keeps its style and script apart from the notebook's own."""
    style = f"width:100%;height:{height}px;border:0;background:#fff;resize:vertical;overflow:auto"
    return (
        f'<iframe title="xaihub" sandbox="allow-scripts allow-downloads" style="{style}"'
        f' srcdoc="{html.escape(page)}"></iframe>'
    )


def pathless(value: Any) -> Any:
    """Return texts, also inside mappings and lists, with every absolute path reduced to its last part."""
    if isinstance(value, str):
        # What is packed was shortened before, and a data URI is long and ours.
        return value if hasattr(value, "__html__") or value.startswith("data:image/") else _shortened(value)
    if isinstance(value, Mapping):
        return {pathless(name): pathless(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [pathless(item) for item in value]
    return value


def packed(value: Any) -> str:
    """Return JSON types as a script element can hold them, without absolute paths; `document` leaves it as it is."""
    from jinja2.utils import htmlsafe_json_dumps

    return htmlsafe_json_dumps(pathless(plain(value)), ensure_ascii=False, separators=(",", ":"))


def data_uri(content: bytes, kind: str) -> str:
    """Return an image file as text that a page can hold; `kind` is its type, such as "png"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _shortened(text: str) -> str:
    if whole := _WHOLE.fullmatch(text):
        return (whole[1] or "") + last_part(whole[2]) + _shortened(whole[3] or "")
    text = text.replace(_HOME, "") if len(_HOME) > 3 else text  # recognised also with spaces and without quotes
    text = _QUOTED.sub(lambda found: found[1] + last_part(found[2]) + found[1], text)
    return _BARE.sub("", text)


def last_part(path: str) -> str:
    """Return the last part of a path of either kind of system."""
    return PureWindowsPath(PurePosixPath(path.rstrip("/\\")).name).name


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("xaihub.explainers.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["cell"] = lambda value: "–" if value is None else f"{value:.4g}" if isinstance(value, float) else value
    return made


@cache
def _asset(name: str) -> str:
    return (resources.files("xaihub.explainers.page") / "templates" / name).read_text(encoding="utf-8")
