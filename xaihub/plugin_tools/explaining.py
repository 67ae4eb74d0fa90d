"""A worker that explains images (see `xaihub.api.jobs`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xaihub.api.jobs import Request, explain_here, pack_outcomes
from xaihub.api.loading import Selection
from xaihub.errors import XaihubError
from xaihub.evaluation.isolation import error_of, packed, unpacked
from xaihub.explainers.budget import budgeted
from xaihub.hub import Hub


class ExplainingWorker:
    """The models and explainers of a worker."""

    def __init__(self, hub: Hub, message: Mapping[str, Any]) -> None:
        """Load what the settings of `explain_in_processes` name."""
        self._hub, self._request = hub, Request(**message["request"])
        self._explainers = [
            budgeted([hub.get_explainer(name, **values)], budget)[0] for name, values, budget in message["explainers"]
        ]
        self._models = Selection(**message["selection"]).load(hub)

    def do(self, data: bytes) -> bytes:
        """Return the outcomes for one image; an error that concerns more than the image is the answer."""
        task, _ = unpacked(data)
        try:
            found = explain_here(self._hub, self._models, self._explainers, [task["source"]], self._request)
            return pack_outcomes(found)
        except XaihubError as error:
            return packed(error_of(error), {})
