"""What a measurement is charged for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xaihub import Case, Explanation, Metric, Model, Preprocessing, Scene, Target
from xaihub.models.passes import Counts


def case_of(module: nn.Module) -> Case:
    preprocessing = Preprocessing(spatial=[], size=(1, 4, 4), mean=(0.0,), std=(1.0,))
    model = Model(module, name="toy", preprocessing=preprocessing)
    image = torch.zeros(1, 4, 4)
    logits = model.predict(image[None])
    target = Target().resolve(logits)
    explanation = Explanation.of_row(
        0, values=torch.zeros(1, 1, 4, 4), logits=logits, target=target, classes=(), metadata={}
    )
    return Case(scene=Scene(model=model, image=image, logits=logits[0], target=target), explanation=explanation)


@pytest.fixture
def case() -> Case:
    return case_of(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)))


class Reads(Metric):
    """Runs `own` rows itself, and reads remembered results of 2 rows, and of 3 rows that rest on those."""

    own: int = 0
    base: bool = False
    derived: bool = False

    def score(self, case: Case) -> float:
        def run(rows: int) -> float:
            return float(case.model(case.scene.image.expand(rows, -1, -1, -1)).sum())

        def base() -> float:
            return case.scene.memory.once("base", lambda: run(2))

        total = run(self.own) if self.own else 0.0
        if self.derived:
            total += case.memory.once("derived", lambda: run(3) + base())
        return total + (base() if self.base else 0.0)


READERS = [
    (Reads(own=4), 4),
    (Reads(base=True), 2),
    (Reads(derived=True), 5),
    (Reads(base=True, derived=True), 5),
    (Reads(own=1, base=True, derived=True), 6),
]


@pytest.mark.parametrize("order", [READERS, READERS[::-1]], ids=["in order", "reversed"])
def test_a_measurement_is_charged_what_it_would_take_alone_in_any_order(
    case: Case, order: list[tuple[Metric, int]]
) -> None:
    with case.model.counting() as made:
        charged = [metric.measure(case)[1] for metric, _ in order]
    assert charged == [Counts(forward_passes=count) for _, count in order]
    assert made == Counts(forward_passes=4 + 1 + 2 + 3)  # what is shared ran once


def test_explaining_the_same_image_again_takes_no_pass_for_the_class() -> None:
    from xaihub import Explainer, ResolvedTarget

    class Constant(Explainer):
        def attribute(self, model: Model, inputs: torch.Tensor, target: ResolvedTarget) -> torch.Tensor:
            return torch.ones_like(inputs)

    case = case_of(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)))
    case.explainer = Constant()
    with case.model.counting() as made:
        assert case.explain(target=Target(index=1)).target.index == 1
        assert made.forward_passes == 0
        case.explain(case.scene.image + 1)
        assert made.forward_passes == 1
