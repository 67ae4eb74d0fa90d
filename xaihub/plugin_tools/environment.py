"""What a bug report needs to know about an installation."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from importlib import metadata
from typing import Any

from xaihub import __version__
from xaihub.hub.host import PluginHost
from xaihub.plugin_tools.overview import states


def environment(host: PluginHost) -> dict[str, Any]:
    """Return versions, devices and third-party plugins, without paths, user names or host names."""
    import torch

    devices = ["cpu"]
    devices += [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {
        "xaihub": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "devices": devices,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "libraries": _libraries(),
        "plugins": [
            {key: row[key] for key in ("name", "distribution", "version", "state")}
            for row in states(host)
            if not row["builtin"]
        ],
    }


def _libraries() -> dict[str, str]:
    """Return the installed version of each library that xaihub can use, by name."""
    found = {}
    for requirement in metadata.requires("xaihub") or ():
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        with suppress(metadata.PackageNotFoundError):  # an extra that is not installed
            found[name] = metadata.version(name)
    return dict(sorted(found.items()))
