"""A hub for explaining vision models.

Importing this package imports nothing heavy: each name below is resolved on first access.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers; a test compares it with `_NAMES`
    from xaihub.api.compare import compare as compare
    from xaihub.api.evaluate import evaluate as evaluate
    from xaihub.api.explain import explain as explain
    from xaihub.api.explain import get_explainer as get_explainer
    from xaihub.api.explain import load_model as load_model
    from xaihub.api.rank import rank as rank
    from xaihub.api.registration import register as register
    from xaihub.api.stream import explain_many as explain_many
    from xaihub.api.train import train as train
    from xaihub.api.tune import tune as tune
    from xaihub.errors import ExplainerRefused as ExplainerRefused
    from xaihub.errors import MetricRefused as MetricRefused
    from xaihub.errors import ModelError as ModelError
    from xaihub.errors import ParameterError as ParameterError
    from xaihub.errors import XaihubError as XaihubError
    from xaihub.evaluation.engine import Engine as Engine
    from xaihub.evaluation.engine import Lost as Lost
    from xaihub.evaluation.engine import Start as Start
    from xaihub.explainers.budget import Budget as Budget
    from xaihub.explainers.budget import in_time as in_time
    from xaihub.explainers.budget import preview as preview
    from xaihub.explainers.budget import rounds as rounds
    from xaihub.explainers.explainer import Attribution as Attribution
    from xaihub.explainers.explainer import Explainer as Explainer
    from xaihub.explainers.explanation import Explanation as Explanation
    from xaihub.explainers.pixel_set import PixelSet as PixelSet
    from xaihub.explainers.result import ClassScore as ClassScore
    from xaihub.explainers.target import ResolvedTarget as ResolvedTarget
    from xaihub.explainers.target import Target as Target
    from xaihub.hookspecs import hookimpl as hookimpl
    from xaihub.hub import Hub as Hub
    from xaihub.images import SourceImage as SourceImage
    from xaihub.images import load_image as load_image
    from xaihub.images import sample_photo as sample_photo
    from xaihub.metric import Case as Case
    from xaihub.metric import Measurement as Measurement
    from xaihub.metric import Metric as Metric
    from xaihub.metric import Scene as Scene
    from xaihub.models.adapter import ModelAdapter as ModelAdapter
    from xaihub.models.adapter import ModelRequest as ModelRequest
    from xaihub.models.backends import Backend as Backend
    from xaihub.models.headed import FunctionHead as FunctionHead
    from xaihub.models.headed import Head as Head
    from xaihub.models.layer import Layer as Layer
    from xaihub.models.layer import Layout as Layout
    from xaihub.models.model import Model as Model
    from xaihub.models.outputs import Outputs as Outputs
    from xaihub.models.outputs import class_scores as class_scores
    from xaihub.models.passes import Runtime as Runtime
    from xaihub.models.preprocessing import Geometry as Geometry
    from xaihub.models.preprocessing import Preprocessing as Preprocessing
    from xaihub.models.structure import Hints as Hints
    from xaihub.models.text_encoder import TextEncoder as TextEncoder
    from xaihub.notices import without_warnings as without_warnings
    from xaihub.objective import Finished as Finished
    from xaihub.objective import Group as Group
    from xaihub.objective import Losses as Losses
    from xaihub.objective import Objective as Objective
    from xaihub.objective import Step as Step
    from xaihub.objective import evaluation_mode as evaluation_mode
    from xaihub.params import Execution as Execution
    from xaihub.params import Meta as Meta
    from xaihub.params import Passes as Passes
    from xaihub.params import Unless as Unless
    from xaihub.params import When as When
    from xaihub.randomness import current_generator as current_generator
    from xaihub.randomness import forked_generator as forked_generator
    from xaihub.randomness import generator_for as generator_for
    from xaihub.ranking.explainer import GlobalExplainer as GlobalExplainer
    from xaihub.ranking.explainer import Ranking as Ranking
    from xaihub.ranking.explanation import GlobalExplanation as GlobalExplanation
    from xaihub.ranking.explanation import RankedFeature as RankedFeature
    from xaihub.specs import AdapterSpec as AdapterSpec
    from xaihub.specs import BackendSpec as BackendSpec
    from xaihub.specs import BaselineSpec as BaselineSpec
    from xaihub.specs import EngineSpec as EngineSpec
    from xaihub.specs import ExplainerSpec as ExplainerSpec
    from xaihub.specs import GlobalExplainerSpec as GlobalExplainerSpec
    from xaihub.specs import HeadSpec as HeadSpec
    from xaihub.specs import MetricSpec as MetricSpec
    from xaihub.specs import ModelCard as ModelCard
    from xaihub.specs import ObjectiveSpec as ObjectiveSpec
    from xaihub.specs import Paper as Paper
    from xaihub.specs import ReproductionSpec as ReproductionSpec
    from xaihub.specs import Weights as Weights

__version__ = "0.1.0"

_NAMES = {
    "api.compare": "compare",
    "api.evaluate": "evaluate",
    "api.explain": "explain get_explainer load_model",
    "api.rank": "rank",
    "api.registration": "register",
    "api.stream": "explain_many",
    "api.train": "train",
    "api.tune": "tune",
    "errors": "ExplainerRefused MetricRefused ModelError ParameterError XaihubError",
    "evaluation.engine": "Engine Lost Start",
    "explainers.budget": "Budget in_time preview rounds",
    "explainers.explainer": "Attribution Explainer",
    "explainers.explanation": "Explanation",
    "explainers.pixel_set": "PixelSet",
    "explainers.result": "ClassScore",
    "explainers.target": "ResolvedTarget Target",
    "hookspecs": "hookimpl",
    "hub": "Hub",
    "images": "SourceImage load_image sample_photo",
    "metric": "Case Measurement Metric Scene",
    "models.adapter": "ModelAdapter ModelRequest",
    "models.backends": "Backend",
    "models.headed": "FunctionHead Head",
    "models.layer": "Layer Layout",
    "models.model": "Model",
    "models.outputs": "Outputs class_scores",
    "models.passes": "Runtime",
    "models.preprocessing": "Geometry Preprocessing",
    "models.structure": "Hints",
    "models.text_encoder": "TextEncoder",
    "objective": "Finished Group Losses Objective Step evaluation_mode",
    "params": "Execution Meta Passes Unless When",
    "notices": "without_warnings",
    "randomness": "current_generator forked_generator generator_for",
    "ranking.explainer": "GlobalExplainer Ranking",
    "ranking.explanation": "GlobalExplanation RankedFeature",
    "specs": "AdapterSpec BackendSpec BaselineSpec EngineSpec ExplainerSpec GlobalExplainerSpec HeadSpec MetricSpec"
    " ModelCard ObjectiveSpec Paper ReproductionSpec Weights",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'xaihub' has no attribute {name!r}")
    value = getattr(import_module(f"xaihub.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
