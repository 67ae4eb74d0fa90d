"""Randomisation tests: known similarities, copies that leave the model alone, and Quantus."""

from __future__ import annotations

from copy import deepcopy
from itertools import chain

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from tests.plugins.sanity_cases import KINDS, SIDE, Gradient, case_of, model_of, perceptron, trained
from xaihub import (
    Explainer,
    ExplainerRefused,
    MetricRefused,
    Model,
    ResolvedTarget,
    Runtime,
)
from xaihub_controls.method import CentreControl, EdgesControl, RandomControl
from xaihub_metrics_sanity import xaihub_register_metrics
from xaihub_metrics_sanity.mprt import MPRT
from xaihub_metrics_sanity.random_logit import RandomLogit
from xaihub_metrics_sanity.randomise import copy_of, randomised, stages


class Fixed(nn.Linear):
    """A linear layer that starts anew always in the same way, whatever random numbers there are."""

    def reset_parameters(self) -> None:
        generator = torch.Generator().manual_seed(self.in_features)
        with torch.no_grad():
            self.weight.copy_(torch.randn(self.weight.shape, generator=generator))
            self.bias.copy_(torch.randn(self.bias.shape, generator=generator))


def network(name: str) -> Model:
    torch.manual_seed(0)
    return model_of(trained(timm.create_model(name, num_classes=10)), channels=3, side=96, name=name)


def changed_parameters(model: Model, copy: Model) -> set[str]:
    before = dict(model.module.named_parameters())
    return {name for name, parameter in copy.module.named_parameters() if not torch.equal(parameter, before[name])}


@pytest.mark.parametrize("weights", ["initial", "shuffled"])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_a_cascade_goes_down_from_the_output_until_every_parameter_is_new(name: str, weights: str) -> None:
    model = network(name)
    groups = stages(model.module, 4)
    sets = [
        changed_parameters(model, copy) for _, copy in randomised(model, order="cascading", layers=4, weights=weights)
    ]
    owners = [{parameter.rpartition(".")[0] for parameter in changed} for changed in sets]
    assert owners == [set(chain(*groups[: index + 1])) for index in range(4)]
    assert sets[-1] == {name for name, parameter in model.module.named_parameters() if parameter.numel() > 1}
    assert f"{model.structure.head}.weight" in sets[0]


def test_one_stage_at_a_time_leaves_the_others_as_they_were() -> None:
    model = network("test_resnet")
    groups = stages(model.module, 5)
    copies = randomised(model, order="independent", layers=5, weights="initial")
    owners = [{name.rpartition(".")[0] for name in changed_parameters(model, copy)} for _, copy in copies]
    assert owners == [set(group) for group in groups]


def test_tokens_and_embeddings_of_a_transformer_are_randomised_last() -> None:
    torch.manual_seed(0)
    model = model_of(trained(timm.create_model("test_vit", num_classes=10)), channels=3, side=160)
    before, *_, after = (
        changed_parameters(model, copy)
        for _, copy in randomised(model, order="cascading", layers=100, weights="initial")
    )
    assert before == {"head.weight", "head.bias"}
    assert after == {name for name, _ in model.module.named_parameters()}
    assert {"cls_token", "pos_embed"} < after


def test_parameters_without_an_initialisation_keep_their_mean_and_spread() -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, SIDE, SIDE) * 3 + 7)
            self.head = nn.Linear(SIDE * SIDE, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head((inputs + self.token).flatten(1))

    torch.manual_seed(0)
    model = model_of(Token())
    *_, (_, copy) = randomised(model, order="cascading", layers=2, weights="initial")
    token = copy.module.get_parameter("token")
    assert token.mean().item() == pytest.approx(7, abs=0.8)
    assert token.std().item() == pytest.approx(3, abs=0.5)


def test_shuffling_keeps_the_values_of_each_parameter() -> None:
    model = network("test_resnet")
    *_, (_, copy) = randomised(model, order="cascading", layers=3, weights="shuffled")
    before = dict(model.module.named_parameters())
    for name, parameter in copy.module.named_parameters():
        assert torch.equal(parameter.flatten().sort().values, before[name].flatten().sort().values)


@pytest.mark.parametrize("layers", [1, 3, 7, 1000])
def test_stages_cover_every_module_once_and_are_of_like_size(layers: int) -> None:
    module = network("test_resnet").module
    groups = stages(module, layers)
    names = list(chain(*groups))
    owners = {name.rpartition(".")[0] for name, _ in module.named_parameters()}
    assert len(groups) == min(layers, len(owners))
    assert len(names) == len(set(names)) == len(owners)
    assert set(names) == owners
    assert max(map(len, groups)) - min(map(len, groups)) <= 1


def test_a_copy_reads_the_same_layers_from_its_own_modules() -> None:
    model = network("test_resnet")
    copy = copy_of(model)
    layer = copy.layer()
    assert layer.name == model.layer().name
    assert layer.reason == model.layer().reason
    assert layer.module is copy.module.get_submodule(layer.name)
    assert layer.module is not model.layer().module
    assert copy.preprocessing is model.preprocessing


def test_a_progress_bar_is_shared_and_never_copied() -> None:
    class Bar:
        def __call__(self, done: int, total: int) -> None: ...

        def __deepcopy__(self, memo: object) -> Bar:
            raise AssertionError("a bar holds a lock")

    model = model_of(perceptron())
    model.runtime = Runtime(progress=Bar())
    assert copy_of(model).runtime is model.runtime


SETTINGS = [MPRT(similarity=kind, order=order) for kind in KINDS for order in ("cascading", "independent")]


@pytest.mark.parametrize("metric", [*SETTINGS, MPRT(weights="shuffled", absolute=False)], ids=repr)
@pytest.mark.parametrize("control", [RandomControl(), EdgesControl(), CentreControl()], ids=repr)
def test_a_map_that_ignores_the_network_scores_one(control: Explainer, metric: MPRT) -> None:
    assert metric.measure(case_of(control, model_of(perceptron())))[0].value == pytest.approx(1, abs=1e-9)


def test_the_gradient_of_a_linear_model_scores_the_cosine_of_old_and_new_weights() -> None:
    module = trained(nn.Sequential(nn.Flatten(), Fixed(SIDE * SIDE, 4)))
    new = deepcopy(module[1])
    new.reset_parameters()
    expected = cosine_similarity(module[1].weight[2], new.weight[2], dim=0).item()
    found = MPRT(similarity="cosine", absolute=False).measure(case_of(Gradient(), model_of(module), target=2))[0]
    assert found.value == pytest.approx(expected, abs=1e-6)
    assert found.details["modules"] == ["1"]


def test_the_more_of_a_map_is_fixed_the_higher_it_scores() -> None:
    class Mixed(Explainer):
        def __init__(self, *, share: float = 0.5) -> None:
            self.share = share

        def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
            fixed = inputs.detach().clone()
            gradient = Gradient().attribute(model, inputs, target)
            return self.share * fixed / fixed.norm() + (1 - self.share) * gradient / gradient.norm()

    shares = (0.0, 0.5, 0.8, 1.0)
    models = [
        model_of(perceptron(seed=seed)) for seed in range(8)
    ]  # on a single one noise decides between the first two
    scores = np.mean(
        [[MPRT(layers=2).measure(case_of(Mixed(share=share), m))[0].value for share in shares] for m in models], axis=0
    ).tolist()
    assert scores == sorted(scores)
    assert scores[0] < 0.4
    assert scores[-1] == pytest.approx(1)


@pytest.mark.parametrize(("order", "theirs"), [("cascading", "top_down"), ("independent", "independent")])
def test_equals_quantus_where_both_draw_the_same_weights(order: str, theirs: str) -> None:
    quantus = pytest.importorskip("quantus")
    module = perceptron(Fixed)
    images = torch.rand(3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    explainer = Gradient()

    def explain(model: nn.Module, inputs: np.ndarray, targets: np.ndarray, **_: object) -> np.ndarray:
        rows = torch.as_tensor(inputs)
        found = explainer.explain(model_of(model), rows, int(targets[0]))
        return torch.stack([item.values for item in found]).numpy()

    metric = quantus.MPRT(
        similarity_func=quantus.similarity_func.correlation_spearman,
        layer_order=theirs,
        disable_warnings=True,
    )
    scores = metric(
        model=deepcopy(module).eval(),
        x_batch=images.numpy(),
        y_batch=np.full(3, 1),
        explain_func=explain,
        channel_first=True,
    )
    # Their own average counts the untouched network as well, which is 1 by definition.
    peers = np.mean([scores[name] for name in ("1", "3", "5")], axis=0)
    assert scores["original"] == pytest.approx([1, 1, 1])
    ours = [
        MPRT(order=order, layers=3).measure(case_of(explainer, model_of(module), image=image, target=1))[0].value
        for image in images
    ]
    assert ours == pytest.approx([float(value) for value in peers], abs=1e-6)
    assert len(set(ours)) == 3


def state(model: Model) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.module.state_dict().items()}


@pytest.mark.parametrize("order", ["cascading", "independent"])
def test_the_model_is_left_bit_for_bit_as_it_was(order: str) -> None:
    model = network("test_resnet")
    case = case_of(Gradient(), model)
    before, digest, logits = state(model), model.weights_hash, model.predict(case.scene.image[None])
    MPRT(order=order, layers=3).measure(case)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())
    assert model.weights_hash == digest
    assert torch.equal(model.predict(case.scene.image[None]), logits)


class Fails(Explainer):
    """Draw noise for the first network, and fail on any other."""

    error = staticmethod(lambda: ExplainerRefused("it has no taste"))
    known = ""

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        self.known = self.known or model.weights_hash
        known = {self.known: torch.rand(1, 1, SIDE, SIDE)}
        if model.weights_hash not in known:
            raise self.error()
        return known[model.weights_hash]


def test_a_copy_that_cannot_be_explained_is_named() -> None:
    with pytest.raises(MetricRefused, match="randomised at '5' cannot be explained: it has no taste"):
        MPRT().measure(case_of(Fails(), model_of(perceptron())))


def test_the_model_is_left_as_it_was_when_the_explainer_breaks() -> None:
    class Breaks(Fails):
        error = staticmethod(lambda: KeyError("no such thing"))

    model = model_of(perceptron())
    model.module.train()
    before, case = state(model), case_of(Breaks(), model)
    with pytest.raises(KeyError):
        MPRT().measure(case)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())
    assert model.module.training
    assert all(parameter.requires_grad for parameter in model.module.parameters())


class Hashes(Explainer):
    """Note the weights of every network that is explained."""

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        self.seen = [*getattr(self, "seen", []), model.weights_hash]
        torch.rand(len(self.seen))  # a greedy user of random numbers
        return inputs.clone()


def hashes(model: Model, image: Tensor, seed: int) -> list[str]:
    explainer = Hashes()
    case = case_of(explainer, model, image=image, seed=seed)
    explainer.seen = []
    MPRT(layers=3).measure(case)
    return explainer.seen


def test_every_image_meets_the_same_copies_and_another_seed_others() -> None:
    model = model_of(perceptron())
    first, second = torch.rand(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    seen = hashes(model, first, seed=0)
    assert seen == hashes(model, second, seed=0)
    assert len({*seen, *hashes(model, first, seed=1), model.weights_hash}) == 7


def test_passes_through_the_copies_are_counted() -> None:
    _, counts = MPRT(layers=3).measure(case_of(Gradient(), model_of(perceptron())))
    # Each explanation also asks for the prediction.
    assert (counts.forward_passes, counts.backward_passes) == (6, 3)


def test_a_cascade_gives_a_curve_that_starts_with_the_map_itself() -> None:
    found = MPRT(layers=3).measure(case_of(Gradient(), model_of(perceptron())))[0]
    alike = found.details["similarities"]
    assert found.curve == ([0.0, 1 / 3, 2 / 3, 1.0], [1.0, *alike])
    assert found.value == pytest.approx(sum(alike) / 3)
    assert found.details["modules"] == ["5", "3", "1"]


def test_a_network_without_parameters_is_refused() -> None:
    class Mean(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.mean((2, 3)).expand(-1, 2) + inputs[:, 0, 0, :2]

    with pytest.raises(MetricRefused, match="no parameters"):
        MPRT().measure(case_of(Gradient(), model_of(Mean())))


def test_every_record_loads_and_lower_is_better() -> None:
    specs = {spec.name: spec for spec in xaihub_register_metrics()}
    assert {name: spec.load() for name, spec in specs.items()} == {"mprt": MPRT, "random_logit": RandomLogit}
    assert not any(spec.higher_is_better for spec in specs.values())
