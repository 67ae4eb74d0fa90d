"""Conformance checks for plugins, and the toy networks that they use; only `conformance` needs pytest."""

from xaihub.testing.budgets import small_parameters
from xaihub.testing.catalogue import CheckResult
from xaihub.testing.decorator import conformance
from xaihub.testing.planted import PlantedExplainer, exact_evidence, planted_case, planted_model, planted_scenes
from xaihub.testing.toys import (
    images,
    randomise,
    tiny_cnn,
    tiny_labels,
    tiny_mixed,
    tiny_nhwc,
    tiny_one_output,
    tiny_plain,
    tiny_structured,
    tiny_vit,
)

__all__ = [
    "CheckResult",
    "PlantedExplainer",
    "conformance",
    "exact_evidence",
    "images",
    "planted_case",
    "planted_model",
    "planted_scenes",
    "randomise",
    "small_parameters",
    "tiny_cnn",
    "tiny_labels",
    "tiny_mixed",
    "tiny_nhwc",
    "tiny_one_output",
    "tiny_plain",
    "tiny_structured",
    "tiny_vit",
]
