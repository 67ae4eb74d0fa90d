"""Heads with one fault each: the corresponding check fails, and its advice says what to change."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import networks
from xaihub import Head, HeadSpec, Hub, Model, hookimpl
from xaihub.hub.host import PluginHost
from xaihub.plugin_tools.conformance import check_plugin
from xaihub.testing.catalogue import CheckResult, run
from xaihub.testing.head_checks import HeadSubject
from xaihub.testing.kit import checks

SPEC = HeadSpec(name="bad", target=f"{__name__}:Good", summary="The first score.")


class Good(Head):
    def rows(self, outputs: Any) -> Tensor:
        return outputs[:, :1]


class ReadsRecords(Head):
    def rows(self, outputs: Any) -> Tensor:
        return outputs.logits[:, :2]


class ReadsItsOwn(Head):
    @staticmethod
    def example_model() -> Model:
        return networks.model()

    def rows(self, outputs: Any) -> Tensor:
        return outputs[:, 1:3]


class ReadsNothing(Head):
    def rows(self, outputs: Any) -> Tensor:
        return outputs["masks"].mean((2, 3))


class ReturnsVector(Head):
    def rows(self, outputs: Any) -> Tensor:
        return outputs.mean(1)


class NamesTooFew(Good):
    classes = ("one", "two")


class DividesByNothing(Head):
    def rows(self, outputs: Any) -> Tensor:
        return outputs / torch.zeros_like(outputs)


class LooksAtTheBatch(Head):
    def rows(self, outputs: Any) -> Tensor:
        return outputs - outputs.mean(0)


class Detaches(Head):
    def rows(self, outputs: Any) -> Tensor:
        return outputs.detach()


class ClampsInPlace(Head):
    def rows(self, outputs: Any) -> Tensor:
        return outputs.data.mul_(2).add(0 * outputs)


class Seeds(Good):
    def bind(self, model: Any) -> None:
        torch.manual_seed(0)


class Prints(Good):
    def rows(self, outputs: Any) -> Tensor:
        os.write(1, b"rows")
        return super().rows(outputs)


def results(method: type[Head]) -> list[CheckResult]:
    subject = HeadSubject(method, spec=SPEC)
    return [run(item, subject, subject.name) for item in checks("head")]


@pytest.mark.parametrize("method", [Good, ReadsRecords, ReadsItsOwn])
def test_a_good_head_passes_every_check(method: type[Head]) -> None:
    assert {(item.check, item.outcome, item.advice) for item in results(method) if item.outcome != "passed"} == set()


@pytest.mark.parametrize(
    ("method", "check", "advice"),
    [
        (ReadsNothing, "works_on_a_network", "give the class a static method `example_model`"),
        (ReturnsVector, "scores_are_rows", "the scores of 3 images have the shape (3,): return (B, K) scores"),
        (NamesTooFew, "scores_are_rows", "there are 2 names for 1 columns"),
        (DividesByNothing, "scores_are_rows", "avoid divisions by 0"),
        (LooksAtTheBatch, "rows_are_independent", "compute each row from the outputs for its own image"),
        (Detaches, "scores_have_gradients", "no `.detach()`"),
        (ClampsInPlace, "nothing_is_changed", "it changed the outputs of the network: clone what you change"),
        (Seeds, "random_state_is_left_as_found", "torch's random state"),
        (Prints, "nothing_is_printed", "it printed 'rows"),
    ],
)
def test_a_bad_head_fails_a_check_with_advice(method: type[Head], check: str, advice: str) -> None:
    failed = {item.check: item.advice for item in results(method) if item.outcome == "failed"}
    assert advice in failed[check]


def test_heads_of_a_plugin_are_checked_by_name() -> None:
    class Plugin:
        @hookimpl
        def xaihub_register_heads(self) -> list[HeadSpec]:
            return [SPEC]

    host = PluginHost(entry_points=[], environ={})
    host.register(Plugin(), name="mine")
    found = check_plugin("bad", Hub(host))
    assert {item.kind for item in found} == {"head"}
    assert {item.check: item.advice for item in found if item.outcome == "failed"} == {}
