"""Every check of the kit: importing this module fills the catalogue."""

from __future__ import annotations

from xaihub.testing import explainer_contract, explainer_cost, explainer_meaning, metric_checks, model_checks

__all__ = ["explainer_contract", "explainer_cost", "explainer_meaning", "metric_checks", "model_checks"]
