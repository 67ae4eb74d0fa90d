"""A hub for explaining vision models.

Nothing heavy is imported until it is used: each name below is resolved on first access.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xaihub.errors import XaihubError as XaihubError
from xaihub.hookspecs import hookimpl as hookimpl
from xaihub.specs import AdapterSpec as AdapterSpec
from xaihub.specs import BaselineSpec as BaselineSpec
from xaihub.specs import ExplainerSpec as ExplainerSpec
from xaihub.specs import GlobalExplainerSpec as GlobalExplainerSpec
from xaihub.specs import MetricSpec as MetricSpec
from xaihub.specs import ModelCard as ModelCard
from xaihub.specs import ObjectiveSpec as ObjectiveSpec
from xaihub.specs import Paper as Paper
from xaihub.specs import ReproductionSpec as ReproductionSpec
from xaihub.specs import Weights as Weights

if TYPE_CHECKING:
    from xaihub.adapter import ModelAdapter as ModelAdapter
    from xaihub.adapter import ModelRequest as ModelRequest
    from xaihub.errors import ExplainerRefused as ExplainerRefused
    from xaihub.errors import MetricRefused as MetricRefused
    from xaihub.errors import ModelError as ModelError
    from xaihub.errors import ParameterError as ParameterError
    from xaihub.explainer import Attribution as Attribution
    from xaihub.explainer import Explainer as Explainer
    from xaihub.explanation import ClassScore as ClassScore
    from xaihub.explanation import Explanation as Explanation
    from xaihub.global_explainer import GlobalExplainer as GlobalExplainer
    from xaihub.global_explainer import Ranking as Ranking
    from xaihub.global_explanation import GlobalExplanation as GlobalExplanation
    from xaihub.global_explanation import RankedFeature as RankedFeature
    from xaihub.hub import Hub as Hub
    from xaihub.images import SourceImage as SourceImage
    from xaihub.images import load_image as load_image
    from xaihub.images import sample_photo as sample_photo
    from xaihub.metric import Case as Case
    from xaihub.metric import Measurement as Measurement
    from xaihub.metric import Metric as Metric
    from xaihub.metric import Scene as Scene
    from xaihub.model import Model as Model
    from xaihub.model import Runtime as Runtime
    from xaihub.objective import Finished as Finished
    from xaihub.objective import Group as Group
    from xaihub.objective import Losses as Losses
    from xaihub.objective import Objective as Objective
    from xaihub.objective import Step as Step
    from xaihub.objective import evaluation_mode as evaluation_mode
    from xaihub.params import Meta as Meta
    from xaihub.preprocessing import Geometry as Geometry
    from xaihub.preprocessing import Preprocessing as Preprocessing
    from xaihub.randomness import generator_for as generator_for
    from xaihub.services.explain import explain as explain
    from xaihub.services.explain import get_explainer as get_explainer
    from xaihub.services.explain import load_model as load_model
    from xaihub.structure import Hints as Hints
    from xaihub.structure import Layer as Layer
    from xaihub.structure import Layout as Layout
    from xaihub.target import ResolvedTarget as ResolvedTarget
    from xaihub.target import Target as Target

__version__ = "0.1.0"

_LAZY = {
    "adapter": ("ModelAdapter", "ModelRequest"),
    "errors": ("ExplainerRefused", "MetricRefused", "ModelError", "ParameterError"),
    "explainer": ("Attribution", "Explainer"),
    "explanation": ("ClassScore", "Explanation"),
    "global_explainer": ("GlobalExplainer", "Ranking"),
    "global_explanation": ("GlobalExplanation", "RankedFeature"),
    "hub": ("Hub",),
    "images": ("SourceImage", "load_image", "sample_photo"),
    "metric": ("Case", "Measurement", "Metric", "Scene"),
    "model": ("Model", "Runtime"),
    "objective": ("Finished", "Group", "Losses", "Objective", "Step", "evaluation_mode"),
    "params": ("Meta",),
    "preprocessing": ("Geometry", "Preprocessing"),
    "randomness": ("generator_for",),
    "services.explain": ("explain", "get_explainer", "load_model"),
    "structure": ("Hints", "Layer", "Layout"),
    "target": ("ResolvedTarget", "Target"),
}
_HOME = {name: module for module, names in _LAZY.items() for name in names}

__all__ = sorted(  # noqa: PLE0605
    [
        *_HOME,
        "AdapterSpec",
        "BaselineSpec",
        "ExplainerSpec",
        "GlobalExplainerSpec",
        "MetricSpec",
        "ModelCard",
        "ObjectiveSpec",
        "Paper",
        "ReproductionSpec",
        "Weights",
        "XaihubError",
        "hookimpl",
    ]
)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'xaihub' has no attribute {name!r}")
    value = getattr(import_module(f"xaihub.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
