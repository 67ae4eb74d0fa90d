"""Hooks of the site's build: links that leave docs/ lead to the repository, and llms.txt lists the pages."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(#[^)\s]*)?(?=\))")

PAGE = re.compile(r"\[([^\]]+)\]\(([^)]+\.md)\)")


def _repository() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["urls"]["Repository"])


def on_config(config: Any) -> Any:
    """Take the repository's address from pyproject.toml, and the navigation from the table on the first page."""
    config.extra["social"] = [{"icon": "fontawesome/brands/git-alt", "link": _repository(), "name": "Repository"}]
    if "MIKE_DOCS_VERSION" in os.environ:  # published; a local build has no other versions to offer
        config.extra["version"] = {"provider": "mike"}
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    doors = re.findall(r"^\| \*\*(.+?)\*\* \| (.+) \|$", index, re.MULTILINE)
    config.nav = [{"Home": "index.md"}]
    config.nav += [{door: [{text: path} for text, path in PAGE.findall(row)]} for door, row in doors]
    return config


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Point links to files that are not pages at the repository."""
    folder = Path(page.file.abs_src_path).parent

    def moved(found: re.Match[str]) -> str:
        target = Path(os.path.normpath(folder / found[1]))
        docs = ROOT / "docs"
        published = target.suffix in {".md", ".png", ".jpg", ".svg", ".html", ".ipynb"} and docs in target.parents
        if published or not target.exists():
            return found[0]
        kind = "tree" if target.is_dir() else "blob"
        return f"{_repository()}/{kind}/main/{target.relative_to(ROOT).as_posix()}{found[2] or ''}"

    return LINK.sub(moved, markdown)


def on_post_build(config: Any) -> None:
    """Write llms.txt: every page with its first sentence, and all pages in one text file."""
    docs = ROOT / "docs"
    pages = sorted(path for path in docs.rglob("*.md") if "examples" not in path.parts)
    lines, whole = ["# xaihub", "", "> A hub for explaining vision models.", "", "## Pages", ""], []
    for path in pages:
        text = path.read_text(encoding="utf-8")
        title = text.partition("\n")[0].lstrip("# ")
        address = path.relative_to(docs).with_suffix(".html").as_posix()
        lines.append(f"- [{title}]({address})")
        whole.append(text)
    folder = Path(config.site_dir)
    (folder / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "llms-full.txt").write_text("\n\n".join(whole), encoding="utf-8")
