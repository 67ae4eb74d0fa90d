"""The hub: everything that plugins register, by name. The host loads plugins, registries hold their records."""

from xaihub.hub.devices import pick_device
from xaihub.hub.hub import DEFAULT_EXPLAINER, DEFAULT_GLOBAL_EXPLAINER, DEFAULT_MODEL, DEFAULT_TIMEOUT, Hub

__all__ = ["DEFAULT_EXPLAINER", "DEFAULT_GLOBAL_EXPLAINER", "DEFAULT_MODEL", "DEFAULT_TIMEOUT", "Hub", "pick_device"]
