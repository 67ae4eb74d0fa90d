"""`explain_many`: explanations of a stream, as they are done."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.evaluate.toys import ToyGradient, ToyNoise
from xaihub import Model, explain, explain_many
from xaihub.api.explain import Outcome
from xaihub.errors import InputError
from xaihub.hub import Hub


@pytest.fixture
def model(hub: Hub) -> Model:
    return hub.load_model("toy")


def test_paths_arrays_and_images_are_explained_as_alone(model: Model, photos: Path) -> None:
    sources: list[Any] = [photos / "0.png", np.zeros((20, 24, 3), dtype=np.uint8)]
    found = list(explain_many(iter(sources), model=model, explainer=ToyNoise, seed=3))
    alone = [explain(source, model=model, explainer=ToyNoise, seed=3) for source in sources]
    assert all(torch.equal(one.values, other.values) for one, other in zip(found, alone, strict=True))
    assert found[0].image is not None


def test_a_data_loader_yields_batches_with_labels(model: Model) -> None:
    inputs = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(inputs, torch.tensor([0, 1, 2, 1, 0])), batch_size=2)
    found = list(explain_many(loader, model=model, explainer=ToyGradient(), labels=True))
    assert [one.target.index for one in found] == [0, 1, 2, 1, 0]
    expected = [
        ToyGradient().explain(model, row[None], label)[0] for row, label in zip(inputs, (0, 1, 2, 1, 0), strict=True)
    ]
    assert all(torch.equal(one.values, other.values) for one, other in zip(found, expected, strict=True))


def test_a_failed_image_costs_only_itself(model: Model, photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    (photos / "1.png").write_text("no image")
    broken = torch.randn(2, 3, 16, 16)
    broken[0, 0, 0, 0] = torch.nan
    outcomes: list[Outcome] = []
    with caplog.at_level(logging.INFO, logger="xaihub"):
        sources = [*sorted(photos.glob("*.png")), broken]
        found = list(explain_many(sources, model=model, explainer=ToyGradient, callback=outcomes.append))
    assert len(found) == 4
    assert [outcome.source for outcome in outcomes if outcome.error] == [str(photos / "1.png"), "4"]
    levels = [record.levelno for record in caplog.records]
    assert (levels.count(logging.WARNING), levels.count(logging.INFO)) == (2, 4)


def test_a_stream_is_lazy_and_can_be_cancelled(model: Model, photos: Path) -> None:
    stop, taken = threading.Event(), []

    def sources() -> Any:
        for number in range(100):
            taken.append(number)
            yield photos / "0.png"

    stream = explain_many(sources(), model=model, explainer=ToyGradient, cancel=stop.is_set)
    next(stream)
    assert taken == [0]
    stop.set()
    assert list(stream) == []
    assert taken == [0, 1]


def test_a_wrong_target_is_refused_at_once(model: Model) -> None:
    with pytest.raises(InputError, match="unicorn"):
        explain_many([], model=model, explainer=ToyGradient, target="unicorn")
