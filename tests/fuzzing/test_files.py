"""Mutated files of every kind: refused in one line or read, without code, writing elsewhere, or much memory."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.fuzzing.driver import Format, Tally, damaged, fuzz
from tests.fuzzing.formats import FORMATS

GROWTH = 2**21  # KiB by which the process may grow


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def check(format_: Format, folder: Path, seconds: float, seed: int) -> Tally:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tally = fuzz(format_, folder, seconds=seconds, seed=seed)
    assert not tally.escaped
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH
    return tally


@pytest.mark.parametrize("format_", FORMATS, ids=lambda item: item.name)
def test_nothing_escapes_in_a_moment(format_: Format, tmp_path: Path) -> None:
    tally = check(format_, tmp_path, seconds=0.3, seed=1)
    assert tally.inputs > 1


@pytest.mark.slow
@pytest.mark.parametrize("format_", FORMATS, ids=lambda item: item.name)
def test_nothing_escapes_in_a_minute_for_all(format_: Format, tmp_path: Path) -> None:
    tally = check(format_, tmp_path, seconds=60 / len(FORMATS), seed=2)
    assert tally.accepted  # some mutations are harmless: the reader is reached
    assert tally.refused


@pytest.mark.parametrize("format_", FORMATS, ids=lambda item: item.name)
def test_the_seeds_are_valid(format_: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for data in format_.seeds():
        file = tmp_path / format_.file
        file.write_bytes(data)
        format_.read(file)


def _mischief(file: Path) -> None:
    (file.parent.parent / "canary").write_text("x")
    raise KeyError(file.read_bytes())


def test_the_driver_sees_what_it_watches_for(tmp_path: Path) -> None:
    kind = Format(name="bad", seeds=lambda: [b"x"], change=damaged, read=_mischief, file="x")
    found = " ".join(fuzz(kind, tmp_path, count=2).escaped)
    assert "KeyError" in found
    assert "open outside" in found
    assert "written outside" in found
    assert "code run" in found


def test_inputs_are_fixed_by_the_seed(tmp_path: Path) -> None:
    from tests.fuzzing.driver import inputs

    first = FORMATS[-1]
    assert [*inputs(first, 20, 3)] == [*inputs(first, 20, 3)]
    assert [*inputs(first, 20, 3)] != [*inputs(first, 20, 4)]
