"""Where the code of a plugin comes from: distribution and version, or a single file with its checksum."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

from xaihub.hub.host import PluginInfo
from xaihub.specs import Origin


def origin_of(info: PluginInfo) -> Origin:
    """Return the origin of a plugin, as results record it."""
    if info.distribution:
        source = "" if info.builtin else _installed_from(info.distribution)
        return Origin(
            plugin=info.name,
            distribution=info.distribution,
            version=info.version,
            source=source,
            builtin=info.builtin,
        )
    file = info.module if info.module.endswith(".py") else ""
    return Origin(plugin=info.name, source=file, sha256=_checksum(file) if file else "", builtin=info.builtin)


@cache
def _installed_from(distribution: str) -> str:
    """Return the address or the folder a distribution was installed from; "" for a package index (PEP 610)."""
    with suppress(Exception):  # metadata may be missing or broken in any way
        return str(json.loads(metadata.distribution(distribution).read_text("direct_url.json") or "{}").get("url", ""))
    return ""


@cache  # of the file as it was imported, not as it was edited since
def _checksum(file: str) -> str:
    from hashlib import sha256  # here, because the library behind it costs start-up milliseconds

    with suppress(OSError):
        return sha256(Path(file).read_bytes()).hexdigest()
    return ""
