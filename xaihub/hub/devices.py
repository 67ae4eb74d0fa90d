"""Devices by name."""

from __future__ import annotations

from typing import Any

from xaihub.errors import ModelError


def pick_device(name: str) -> Any:
    """Return the torch device called `name`; "auto" prefers CUDA.

    Raises:
        ModelError: The device does not exist on this machine.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"there is no device {name!r}", hint="use auto, cpu, cuda, cuda:1 or mps") from error
    missing = (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing or device.type not in ("cpu", "cuda", "mps"):
        raise ModelError(f"device {name!r} is not available here", hint="use --device cpu")
    return device
