"""How the weight of the ExpO penalties is fixed, and which parameters are refused."""

from __future__ import annotations

import pytest
import torch

from tests.plugins.expo_networks import Counted, batch, begun, resnet, step, vit, wrapped
from xaihub import Objective, ParameterError
from xaihub.hub import Hub
from xaihub_expo.base import selection
from xaihub_expo.objectives import Fidelity, LineFidelity, Stability


def test_the_weight_makes_the_penalty_a_fraction_of_the_loss_on_a_batch_held_out() -> None:
    objective = LineFidelity(c=0.1, warmup=0, penalty_batch=4)
    network = begun(objective, wrapped(vit())).eval()
    inputs, labels = batch()

    with torch.no_grad():
        losses = objective.loss(network, inputs, labels, step())

    assert float(losses.terms["expo"]) == pytest.approx(0.1 * float(losses.terms["cross_entropy"]), rel=1e-4)


@pytest.mark.parametrize("training", [True, False], ids=["", "frozen"])
def test_after_a_warm_up_the_weight_is_fixed_by_the_validation_that_ends_it(training: bool) -> None:
    objective = Stability(c=0.2, warmup=2)
    network = begun(objective, wrapped(vit()))

    seen = []
    for epoch in (1, 2, 3):
        seen.append("expo" in objective.loss(network.train(training), *batch(), step(epoch)).terms)
        with torch.no_grad():
            seen.append("expo" in objective.loss(network.eval(), *batch(), step(epoch)).terms)
        noted = objective.epoch_end(network, epoch)

    assert seen == [False, False, False, True, True, True]
    assert noted["gamma"] == objective.state["gamma"] > 0


def test_without_images_held_out_the_next_training_batch_fixes_the_weight() -> None:
    objective = Stability(c=0.2, warmup=1)
    network = begun(objective, wrapped(vit()))

    before = objective.loss(network, *batch(), step(1)).terms
    objective.epoch_end(network, 1)
    after = objective.loss(network, *batch(), step(2)).terms

    assert "expo" not in before
    assert "expo" in after


def test_calibration_leaves_the_draws_of_the_penalty_as_they_are() -> None:
    objective = Stability(c=0.2, warmup=1)
    network = begun(objective, wrapped(vit())).eval()

    with torch.no_grad():
        first = objective.loss(network, *batch(), step(1)).notes["penalty"]
        again = objective.loss(network, *batch(), step(1)).notes["penalty"]

    assert first == again == objective.state["penalty_at_start"]


@pytest.mark.parametrize("few", [1, 3])
def test_all_images_of_a_batch_fix_the_weight_however_few_a_step_penalises(few: int) -> None:
    objective = LineFidelity(c=0.2, warmup=0, penalty_batch=few)
    (inputs, labels), network = batch(), objective.wrap(wrapped(resnet())).eval()
    seen = Counted(network)
    objective.begin(network, [(inputs, labels)], torch.Generator().manual_seed(0), 3)

    generator, expected = torch.Generator().manual_seed(0), 0.0
    for part in torch.randperm(4, generator=generator).split(few):
        logits = network(inputs[part]).detach()
        found = objective.penalty(network, inputs[part], logits, selection(labels[part], logits), generator)
        expected += len(part) / 4 * float(found.detach())
    assert objective.state["penalty_at_start"] == pytest.approx(expected, rel=1e-4)
    assert seen.rows[:3] == ([4, 8, 8] if few == 1 else [4, 24, 8])


def test_a_fraction_of_zero_is_plain_training() -> None:
    objective = Fidelity(c=0, warmup=0)
    network = begun(objective, wrapped(vit()))
    seen = Counted(network)

    losses = objective.loss(network, *batch(), step())

    assert set(losses.terms) == {"cross_entropy"}
    assert seen.rows == [4]


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Stability(warmup=3), "no epoch is left after a warm-up of 3"),
        (Stability(warmup=9), "no epoch is left after a warm-up of 9"),
        (Stability(relative=True, stop_gradient=True), "exclude each other"),
        (Fidelity(grid=4, samples=17), "samples=17 is too small"),
        (Fidelity(weight=1.0, grid=4, samples=17), "samples=17 is too small"),
    ],
    ids=repr,
)
def test_what_cannot_work_is_refused_before_the_first_step(objective: Objective, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        begun(objective, wrapped(vit()))  # a run of 3 epochs


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Fidelity(weight=1.0, c=0.5), "parameter 'c' of Fidelity has no effect with weight=1.0"),
        (LineFidelity(weight=1.0, warmup=0), "parameter 'warmup' of LineFidelity has no effect with weight=1.0"),
        (Fidelity(opacities="uniform", keep=0.5), "parameter 'keep' of Fidelity has no effect with opacities=uniform"),
        (Stability(keep=0.5), "parameter 'keep' of Stability has no effect with neighbourhood=pixels"),
        (Stability(grid=5), "parameter 'grid' of Stability has no effect"),
        (Stability(baseline="black"), "parameter 'baseline' of Stability has no effect"),
        (Stability(neighbourhood="patches", radius=0.1), "parameter 'radius' of Stability has no effect"),
    ],
    ids=repr,
)
def test_parameters_without_effect_are_refused(objective: Objective, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        objective.wrap(wrapped(vit()))


def test_the_defaults_of_fidelity_are_those_that_were_measured() -> None:
    assert (Fidelity().c, Fidelity().keep) == (1.0, None)


def test_a_plain_run_may_end_with_its_warm_up() -> None:
    objective = Stability(c=0, warmup=3)
    network = begun(objective, wrapped(vit()))

    assert set(objective.loss(network, *batch(), step()).terms) == {"cross_entropy"}


@pytest.mark.parametrize("name", ["expo-fidelity", "expo-1d", "expo-stability", "expo/expo-1d"])
def test_objectives_answer_to_their_names_and_take_words_for_values(name: str) -> None:
    objective = Hub().get_objective(name, c="0.25", every="2", penalty_batch="none")

    assert (objective.parameters["c"], objective.parameters["every"]) == (0.25, 2)
    assert Hub().get_objective("expo-fidelity", keep="none").parameters["keep"] is None


@pytest.mark.parametrize("values", [{"c": "-1"}, {"every": "0"}, {"grid": "1"}, {"baseline": "mauve"}])
def test_wrong_parameters_are_refused(values: dict[str, str]) -> None:
    def use() -> None:
        objective = Hub().get_objective("expo-fidelity", weight="1", **values)
        objective.loss(begun(objective, wrapped(vit())), *batch(), step())

    with pytest.raises(ParameterError, match=next(iter(values.values()))):
        use()
