"""Conformance checks for plugins, and the toys that they run on.

Nothing heavy is imported until it is used: each name below is resolved on first access. pytest is needed for
`conformance` only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xaihub.testing.budgets import small_parameters as small_parameters
    from xaihub.testing.catalogue import CheckResult as CheckResult
    from xaihub.testing.decorator import conformance as conformance
    from xaihub.testing.planted import PlantedExplainer as PlantedExplainer
    from xaihub.testing.planted import exact_evidence as exact_evidence
    from xaihub.testing.planted import planted_case as planted_case
    from xaihub.testing.planted import planted_model as planted_model
    from xaihub.testing.planted import planted_scenes as planted_scenes
    from xaihub.testing.toys import images as images
    from xaihub.testing.toys import randomise as randomise
    from xaihub.testing.toys import tiny_cnn as tiny_cnn
    from xaihub.testing.toys import tiny_nhwc as tiny_nhwc
    from xaihub.testing.toys import tiny_plain as tiny_plain
    from xaihub.testing.toys import tiny_vit as tiny_vit

_LAZY = {
    "budgets": ("small_parameters",),
    "catalogue": ("CheckResult",),
    "decorator": ("conformance",),
    "planted": ("PlantedExplainer", "exact_evidence", "planted_case", "planted_model", "planted_scenes"),
    "toys": ("images", "randomise", "tiny_cnn", "tiny_nhwc", "tiny_plain", "tiny_vit"),
}
_HOME = {name: module for module, names in _LAZY.items() for name in names}

__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'xaihub.testing' has no attribute {name!r}")
    value = getattr(import_module(f"xaihub.testing.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__]
