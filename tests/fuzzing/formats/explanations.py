"""Saved explanations and global explanations, the record and the tensors of each."""

from __future__ import annotations

import random
import tempfile
from functools import cache
from pathlib import Path

import torch

from tests.fuzzing.driver import Format
from tests.fuzzing.formats.packed import change_json, change_packed
from xaihub import ClassScore, Explanation, PixelSet
from xaihub.models.preprocessing import Geometry
from xaihub.ranking.explanation import GlobalExplanation


@cache
def _explanation() -> tuple[bytes, bytes]:
    best = ClassScore(index=1, name="cat", logit=2.0, probability=0.7)
    made = Explanation(
        values=torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(0)),
        target=best,
        against=ClassScore(index=2, name="dog", logit=1.0, probability=0.2),
        predicted=best,
        geometry=Geometry(original=(12, 8), scaled=(9, 6), offset=(1, 0), crop=(6, 6)),
        sets=(PixelSet(mask=torch.ones(6, 6, dtype=torch.bool), holds=True, score=0.5, baseline="zero"),),
        extras={"more": torch.ones(3)},
        metadata={"explainer": "gradcam", "model": "toy", "warnings": ["w"], "seed": 0, "seconds": 0.1},
    )
    with tempfile.TemporaryDirectory() as folder:
        saved = made.save(Path(folder) / "x")
        return saved.with_suffix(".json").read_bytes(), saved.read_bytes()


@cache
def _ranking(suffix: str) -> bytes:
    made = GlobalExplanation(
        runs=torch.rand(2, 4, generator=torch.Generator().manual_seed(0)),
        names=tuple("abcd"),
        feature="channel",
        method="scores",
        history=torch.ones(3, 4),
        grid=(2, 2),
        metadata={"model": "toy", "warnings": ["w"]},
    )
    with tempfile.TemporaryDirectory() as folder:
        return made.save(Path(folder) / f"x{suffix}").read_bytes()


def _use(explanation: Explanation) -> None:
    _ = explanation.claim, explanation.warnings, explanation.explainer, explanation.model, explanation.to_dict()
    explanation.heatmap()
    if explanation.geometry is not None and explanation.geometry.original[0] * explanation.geometry.original[1] < 10**6:
        explanation.heatmap(original=True)
    _ = [one.area for one in explanation.sets]


def _read_record(file: Path) -> None:
    file.with_suffix(".safetensors").write_bytes(_explanation()[1])
    _use(Explanation.load(file))


def _read_values(file: Path) -> None:
    file.with_suffix(".json").write_bytes(_explanation()[0])
    _use(Explanation.load(file))


def _read_ranking(file: Path) -> None:
    found = GlobalExplanation.load(file)
    _ = found.claim, found.warnings, found.ranking, found.to_dict()


def _json(data: bytes, draw: random.Random) -> bytes:
    return change_json(data, draw).encode(errors="surrogatepass")


def _packed_record(data: bytes, draw: random.Random) -> bytes:
    return change_packed(data, draw, lambda text: change_json(text, draw))


FORMATS = (
    Format(name="explanation json", seeds=lambda: [_explanation()[0]], change=_json, read=_read_record, file="x.json"),
    Format(
        name="explanation safetensors",
        seeds=lambda: [_explanation()[1]],
        change=change_packed,
        read=_read_values,
        file="x.safetensors",
    ),
    Format(name="ranking json", seeds=lambda: [_ranking(".json")], change=_json, read=_read_ranking, file="r.json"),
    Format(
        name="ranking safetensors",
        seeds=lambda: [_ranking(".safetensors")],
        change=_packed_record,
        read=_read_ranking,
        file="r.safetensors",
    ),
)
