"""The kit that authors use, on every built-in explainer, metric, adapter and card."""

from __future__ import annotations

from functools import cache

import pytest

from xaihub.host import PluginHost
from xaihub.hub import Hub
from xaihub.services.conformance import check_plugin

# Checks that a thing may pass by refusing with a reason.
MAY_REFUSE = {"works_on_a_cnn", "works_on_a_vit", "works_with_channels_last"}


@cache
def hub() -> Hub:
    return Hub(PluginHost(environ={"XAIHUB_LOAD_PLUGINS": "", "XAIHUB_STRICT_PLUGINS": "1"}).load())


def names(kind: str) -> list[str]:
    return [f"{spec.plugin}/{spec.name}" for spec in getattr(hub(), kind)]


@pytest.mark.parametrize("name", [*names("explainers"), *names("metrics"), *names("adapters"), *names("models")])
def test_a_built_in_passes_every_check(name: str) -> None:
    results = check_plugin(name, hub())

    failed = [f"{result.check}: {result.advice}" for result in results if result.outcome == "failed"]
    refused = {result.check for result in results if result.outcome == "refused"}
    assert failed == []
    assert refused <= MAY_REFUSE
    assert sum(result.outcome == "passed" for result in results) > 2
