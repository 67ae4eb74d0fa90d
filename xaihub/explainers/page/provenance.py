"""Where results come from, as groups of facts for a page: models, plugins, versions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from xaihub.explainers.page.view import parameters

Facts = list[tuple[str, str]]


def group(title: str, rows: Facts, *, opened: bool = False) -> dict[str, Any]:
    """Return a group of facts as the template shows it; one without rows is not shown."""
    return {"title": title, "rows": rows, "open": opened}


def provenance(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the models, explainers, plugins and versions that the records of explanations name, each once."""
    models: dict[str, list[str]] = {}
    methods: dict[str, list[str]] = {}
    versions: dict[str, list[str]] = {}
    for record in records:
        _add(models, record.get("model"), _model(record))
        _add(methods, record.get("explainer"), _method(record))
        for name, version in dict(record.get("versions") or {}).items():
            _add(versions, name, str(version))
    return [
        group(title, [(name, "; ".join(several)) for name, several in found.items()])
        for title, found in (("Models", models), ("Explainers and plugins", methods), ("Versions", versions))
    ]


def _add(found: dict[str, list[str]], name: Any, text: str) -> None:
    several = found.setdefault(str(name or ""), [])
    if text not in several:
        several.append(text)


def _model(record: Mapping[str, Any]) -> str:
    facts = {"weights sha256": record.get("weights_sha256"), "outputs": record.get("outputs"),
             "device": record.get("device"), **dict(record.get("preprocessing") or {})}  # fmt: skip
    return parameters({name: value for name, value in facts.items() if value is not None})


def _method(record: Mapping[str, Any]) -> str:
    plugin = dict(record.get("plugin") or {})
    source = " ".join(str(plugin[name]) for name in ("plugin", "distribution", "version") if plugin.get(name))
    return ", ".join(
        part for part in (f"plugin {source}" if source else "", parameters(record.get("parameters", {}))) if part
    )
