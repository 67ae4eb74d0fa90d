"""`xaihub plugins check` on plugins that exit, crash, hang and leave traces, and `plugins search`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from packaging.licenses import canonicalize_license_expression

from xaihub.cli import cli
from xaihub.plugin_tools.known import known

Run = Callable[..., Result]

HOSTILE = '''
"""Explainers that end or block whatever runs them, and a good one after them."""
import ctypes, faulthandler, os, sys, time
from typing import Annotated

import torch

from xaihub import Explainer, Meta


class AExits(Explainer):
    """Exits with 0."""
    def attribute(self, model, inputs, target): sys.exit(0)


class BQuits(Explainer):
    """Ends the process with status 0."""
    def attribute(self, model, inputs, target): os._exit(0)


class CCrashes(Explainer):
    """Crashes the process."""
    def attribute(self, model, inputs, target):
        faulthandler.disable()  # pytest's, which would print where
        ctypes.string_at(0)


class DHangs(Explainer):
    """Never returns."""
    def attribute(self, model, inputs, target):
        while True: time.sleep(1)


class EInterrupts(Explainer):
    """Raises what Ctrl-C raises."""
    def attribute(self, model, inputs, target): raise KeyboardInterrupt


class Mute(BaseException):
    def __str__(self): raise RuntimeError


class FMute(Explainer):
    """Raises something without a message."""
    def attribute(self, model, inputs, target): raise Mute


class ZGood(Explainer):
    """Gradient times input, averaged over 100 passes under a name of its own."""
    needs = ("gradients",)
    cost = "repeats forward and backward passes"
    repeats: Annotated[int, Meta(ge=1, description="Passes.")] = 100

    def attribute(self, model, inputs, target):
        total = torch.zeros_like(inputs)
        for number in range(self.repeats):
            print("at", number)
            points = (inputs * (1 - 0.5 * number / self.repeats)).detach().requires_grad_()
            total += torch.autograd.grad(target.score(model(points)).sum(), points)[0] * inputs
        return total / self.repeats
'''
ONLY = ("process_is_left_as_found", "works_on_a_cnn", "values_are_finite", "shape_is_that_of_the_input")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The checks of all of them, each in a process forked from this one."""
    file = tmp_path_factory.mktemp("hostile") / "hostile.py"
    file.write_text(HOSTILE, encoding="utf-8")
    only = [word for name in ONLY for word in ("--only", name)]
    check = ["--plugin", str(file), "plugins", "check", "hostile", *only, "--timeout", "20", "--json"]
    return CliRunner().invoke(cli, check, prog_name="xaihub")


@pytest.fixture(scope="module")
def outcomes(hostile: Result) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["subject"], row["check"]): row for row in json.loads(hostile.stdout)}


@pytest.mark.parametrize(
    ("subject", "check", "advice"),
    [
        ("a_exits", "works_on_a_cnn", "it raised SystemExit (0)"),
        ("b_quits", "process_is_left_as_found", "it ended the process with exit status 0"),
        ("b_quits", "values_are_finite", "it ended the process with exit status 0"),
        ("c_crashes", "process_is_left_as_found", "it crashed the process (SIGSEGV)"),
        ("d_hangs", "process_is_left_as_found", "it did not finish within 20 s"),
        ("e_interrupts", "works_on_a_cnn", "it raised KeyboardInterrupt"),
        ("f_mute", "works_on_a_cnn", "it raised Mute (its message cannot be read)"),
    ],
)
def test_whatever_ends_or_blocks_the_worker_fails_its_check(
    outcomes: dict[tuple[str, str], dict[str, Any]], subject: str, check: str, advice: str
) -> None:
    row = outcomes[subject, check]

    assert (row["outcome"], row["plugin"]) == ("failed", "hostile")
    assert advice in row["advice"]


def test_after_a_timeout_the_other_checks_of_the_subject_are_not_run(
    outcomes: dict[tuple[str, str], dict[str, Any]],
) -> None:
    row = outcomes["d_hangs", "works_on_a_cnn"]

    assert row["outcome"] == "not applicable"
    assert "did not finish within 20 s in 'process_is_left_as_found'" in row["advice"]


def test_a_good_method_after_them_passes_and_the_culprits_are_named(
    hostile: Result, outcomes: dict[tuple[str, str], dict[str, Any]]
) -> None:
    assert {name: outcomes["z_good", name]["outcome"] for name in ONLY} == dict.fromkeys(ONLY, "passed")
    assert hostile.exit_code == 1
    culprits = hostile.stderr.splitlines()[-1].partition("checks failed: ")[2]
    named = ["a_exits", "b_quits", "c_crashes", "d_hangs", "e_interrupts", "f_mute"]
    assert culprits == ", ".join(f"{name} (plugin hostile)" for name in named)


def test_parameters_are_set_by_hand_and_invalid_ones_are_one_line(tmp_path: Path, run: Run) -> None:
    (tmp_path / "hostile.py").write_text(HOSTILE, encoding="utf-8")
    arguments = ("--plugin", "hostile.py", "plugins", "check", "z_good", "--only", "keeps_to_its_budget")

    assert "passed" in run(*arguments, "-p", "repeats=3").stdout
    for wrong, message in {"repeats=0": "repeats", "cells=3": "z_good has no parameter 'cells'"}.items():
        result = run(*arguments, "-p", wrong)
        assert result.exit_code == 2
        assert message in result.stderr


def test_search_finds_by_any_word_in_any_case(run: Run) -> None:
    found = json.loads(run("plugins", "search", "lrp", "explainer", "--json").stdout)

    assert [item["name"] for item in found] == ["xaihub-zennit"]
    assert len(json.loads(run("plugins", "search", "--json").stdout)) == len(known())
    result = run("plugins", "search", "no such thing")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no known plugin matches 'no such thing'" in result.stderr


def test_every_known_plugin_has_a_valid_licence_and_one_entry() -> None:
    assert len({item.name for item in known()}) == len(known())
    for item in known():
        assert canonicalize_license_expression(item.licence) == item.licence
