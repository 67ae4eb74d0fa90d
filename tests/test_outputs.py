"""What a model's outputs mean: kinds, their scales, names, targets, and explanations whose exact answer is known."""

from __future__ import annotations

import ast
import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import xaihub
from tests import networks
from tests.networks import peak
from xaihub import ClassScore, Outputs, Target, class_scores
from xaihub.errors import ExplainerRefused, ModelError, ParameterError, XaihubError

ROOT = Path(__file__).resolve().parents[1]
CELLS, SIDE = networks.CELLS, networks.SIDE
EVIDENCE = (1, 2)  # row and column of the cell that holds the evidence of output 0
OTHER = (3, 0)  # and of output 1


class OnCells(nn.Module):
    """A linear network on 4 x 4 cells: output k is weight * (mean brightness of its own cell) + bias."""

    def __init__(self, places: tuple[tuple[int, int], ...] = (EVIDENCE,), *, weight: float = 6.0, bias: float = -3.0):
        super().__init__()
        self.cells = nn.Sequential(nn.AvgPool2d(SIDE // CELLS), nn.Conv2d(3, 1, 1, bias=False), nn.ReLU())
        self.flat = nn.Flatten()
        self.head = nn.Linear(CELLS**2, len(places))
        with torch.no_grad():
            self.cells[1].weight.fill_(1 / 3)
            self.head.weight.zero_()
            self.head.bias.fill_(bias)
            for row, (top, left) in enumerate(places):
                self.head.weight[row, top * CELLS + left] = weight

    def forward(self, inputs: Tensor) -> Any:
        return self.head(self.flat(self.cells(inputs)))


def bright(*places: tuple[int, int]) -> Tensor:
    """One input: dim, with bright cells."""
    image = torch.full((1, 3, SIDE, SIDE), 0.1)
    step = SIDE // CELLS
    for top, left in places:
        image[..., top * step : (top + 1) * step, left * step : (left + 1) * step] = 1.0
    return image


EXPLAINERS: dict[str, dict[str, Any]] = {
    "saliency": {},
    "input_x_gradient": {},
    "integrated_gradients": {"steps": 8},
    "gradcam": {"layer": "cells"},
    "occlusion": {"window": 16, "stride": 16, "baseline": "zero"},
    "rise": {"masks": 800, "cell": 4},
    "lime": {"samples": 200, "features": "grid:4", "baseline": "zero"},
    "kernel_shap": {"samples": 200, "features": "grid:4", "baseline": "zero"},
    "shap": {},
    "first_principles": {"baseline": "zero"},
    "shapley_values": {},
    "convad": {"baseline": "zero"},
    "scorecam": {"layer": "cells"},
}
KINDS: dict[str, tuple[tuple[tuple[int, int], ...], str]] = {
    "multiclass": ((EVIDENCE, OTHER), ""),
    "multilabel": ((EVIDENCE, OTHER), ""),
    "binary": ((EVIDENCE,), ""),
    "regression:years": ((EVIDENCE,), ""),
}


@pytest.mark.parametrize("name", EXPLAINERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_explainer_points_at_the_evidence_of_every_kind(kind: str, name: str) -> None:
    net = networks.model(OnCells(KINDS[kind][0]), outputs=kind)
    explainer = xaihub.get_explainer(name, **EXPLAINERS[name])
    if kind.startswith("regression") and name == "convad":
        with pytest.raises(ExplainerRefused, match="make no decision"):
            explainer.explain(net, bright(EVIDENCE))
        return
    (found,) = explainer.explain(net, bright(EVIDENCE))
    assert peak(found) == EVIDENCE
    assert found.metadata["outputs"] == kind


def test_two_labels_are_explained_separately_and_together() -> None:
    net = networks.model(OnCells((EVIDENCE, OTHER)), outputs="multilabel", classes=("cat", "dog"))
    explainer = xaihub.get_explainer("occlusion", **EXPLAINERS["occlusion"])
    image = bright(EVIDENCE, OTHER)
    assert peak(explainer.explain(net, image, "cat")[0]) == EVIDENCE
    assert peak(explainer.explain(net, image, "dog")[0]) == OTHER
    both = explainer.explain(net, image, "cat + dog")[0]
    cells = nn.functional.avg_pool2d(both.heatmap()[None, None], SIDE // CELLS)[0, 0]
    assert cells[EVIDENCE] == pytest.approx(float(cells[OTHER]), rel=1e-4)
    assert cells.flatten().topk(3).values[2] == pytest.approx(0.0, abs=1e-6)
    assert both.claim == "cat + dog 95.3%"  # the mean of two sigmoids of 3
    assert (both.target.logit, both.target.value) == (pytest.approx(3.0), None)


def test_the_logits_of_two_labels_have_a_probability_each() -> None:
    logits = torch.tensor([[4.0, 4.0, -4.0]])
    target = Target(index=1).resolve(logits, Outputs("multilabel"))
    found = ClassScore.of(logits, target, ("a", "b", "c"))
    assert str(found) == "b 98.2%"


@pytest.mark.parametrize(
    ("text", "sign", "name"),
    [
        (None, 1, "defect"),
        ("positive", 1, "defect"),
        ("1", 1, "defect"),
        ("negative", -1, "not defect"),
        ("not defect", -1, "not defect"),
    ],
)
def test_both_sides_of_a_binary_output(text: str | None, sign: int, name: str) -> None:
    net = networks.model(OnCells(), outputs="binary", classes=("defect",))
    (found,) = xaihub.get_explainer("saliency").explain(net, bright(EVIDENCE), text)
    assert (found.target.name, found.target.logit) == (name, pytest.approx(3.0 * sign))
    assert found.target.probability == pytest.approx(1 / (1 + 2.718281828 ** (-3.0 * sign)))
    assert found.predicted.name == "defect"
    assert net.classes == ("not defect", "defect")


def test_a_value_is_explained_up_and_down() -> None:
    net = networks.model(OnCells(), outputs="regression:years", classes=("age",))
    explainer = xaihub.get_explainer("input_x_gradient")
    up, named, down = (explainer.explain(net, bright(EVIDENCE), text)[0] for text in (None, "age up", "value down"))
    assert torch.equal(up.values, named.values)
    assert torch.equal(up.values, -down.values)
    assert (up.claim, down.claim) == ("age 3 years", "lower age 3 years")
    assert up.to_dict()["target"] == {"index": 0, "name": "age", "value": pytest.approx(3.0), "unit": "years"}
    assert (up.predicted.value, up.target.probability) == (up.target.value, None)


def test_a_network_may_return_a_vector_of_values() -> None:
    class Vector(OnCells):
        def forward(self, inputs: Tensor) -> Any:
            return super().forward(inputs)[:, 0]

    for kind in ("binary", "regression"):
        (found,) = xaihub.get_explainer("saliency").explain(networks.model(Vector(), outputs=kind), bright(EVIDENCE))
        assert peak(found) == EVIDENCE


@pytest.mark.parametrize("outputs", [None, "embedding"])
def test_what_cannot_be_known_is_refused_in_one_line(outputs: str | None) -> None:
    net = networks.model(OnCells(), outputs=outputs)
    with pytest.raises(XaihubError, match="one output, which may be" if outputs is None else "returns an embedding"):
        xaihub.get_explainer("saliency").explain(net, bright(EVIDENCE))


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("regression", "top1", "rank of classes"),
        ("multilabel", "0 vs 1 + 0", "not a contrast"),
        ("multilabel", "0 + 0", "not several different"),
        ("embedding", None, "returns an embedding of 2 features"),
        ("regression", None, "returns 2 values"),
        ("regression", "0 down vs 1", "not a contrast"),
    ],
)
def test_targets_that_the_outputs_do_not_have(kind: str, text: str | None, message: str) -> None:
    outputs = Outputs.parse(kind)
    with pytest.raises(ParameterError, match=message):
        Target.parse(text, (), outputs).resolve(torch.zeros(1, 2), outputs)


def test_kinds_are_read_from_text() -> None:
    assert Outputs.parse("regression:mm Hg") == Outputs("regression", "mm Hg")
    assert str(Outputs.parse("Binary")) == "binary"
    for text in ("sigmoid", "binary:years", ""):
        with pytest.raises(ParameterError, match="outputs cannot be"):
            Outputs.parse(text)


def test_binary_outputs_are_one_logit() -> None:
    net = networks.model(OnCells((EVIDENCE, OTHER)), outputs="binary")
    with pytest.raises(ModelError, match=r"one logit per image, but the network returned \(1, 2\)"):
        net.predict(bright())


def test_outputs_that_are_probabilities_already_are_reported() -> None:
    explainer = xaihub.get_explainer("saliency")
    for layer, kind in ((nn.Softmax(1), "multiclass"), (nn.Sigmoid(), "multilabel")):
        network = nn.Sequential(OnCells((EVIDENCE, OTHER, (0, 0))), layer)
        (found,) = explainer.explain(networks.model(network, outputs=kind), bright(EVIDENCE))
        assert len(found.warnings) == 1
        (plain,) = explainer.explain(networks.model(network[0], outputs=kind), bright(EVIDENCE))
        assert not plain.warnings


def test_scales() -> None:
    rows = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    for kind in ("multiclass", "multilabel", "binary"):
        outputs = Outputs(kind)
        probabilities = class_scores(rows, "probability", outputs)
        assert torch.allclose(class_scores(rows, "log_probability", outputs).exp(), probabilities)
        assert torch.equal(class_scores(rows, "logit", outputs), rows)
    assert torch.allclose(class_scores(rows, "probability", Outputs("multilabel")), 1 / (1 + (-rows).exp()))
    assert torch.equal(class_scores(rows, "probability", Outputs("regression")), rows)
    for kind, output in (("multiclass", "value"), ("regression", "log_probability"), ("multiclass", "odds")):
        with pytest.raises(ParameterError):
            class_scores(rows, output, Outputs(kind))


def test_a_declared_network_keeps_its_layers_weights_and_mode() -> None:
    network = OnCells()
    plain = networks.model(copy.deepcopy(network), outputs="multilabel")
    binary = networks.model(network, outputs="binary")
    assert binary.weights_hash == plain.weights_hash
    assert binary.structure_hash != plain.structure_hash
    assert [name for name, _ in binary.module.named_modules()] == [name for name, _ in plain.module.named_modules()]
    assert binary.module.state_dict().keys() == network.state_dict().keys()
    assert binary.layer("cells").grid == (CELLS, CELLS)
    network.train()
    with binary.untouched():
        assert not network.training
    assert network.training
    copied = copy.deepcopy(binary.module)
    with torch.no_grad():
        copied.head.weight.zero_()
    assert torch.allclose(binary.around(copied)(bright(EVIDENCE)), torch.tensor([[3.0, -3.0]]))
    assert torch.allclose(binary(bright(EVIDENCE)), torch.tensor([[-3.0, 3.0]]))
    again = binary.declared("regression")
    assert torch.allclose(again(bright(EVIDENCE)), torch.tensor([[3.0]]))


BLACK_BOX = ("occlusion", "rise", "lime", "kernel_shap", "shap", "first_principles", "shapley_values")


@pytest.mark.parametrize("name", BLACK_BOX)
def test_a_constant_score_is_reported_and_not_drawn(name: str) -> None:
    """A saturated probability, and a network that ignores its input."""
    explainer = xaihub.get_explainer(name, **EXPLAINERS[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (found,) = explainer.explain(
            networks.model(OnCells(weight=0.0), outputs="binary"), bright(EVIDENCE), "positive"
        )
    assert not found.values.any()
    assert any("the score is the same" in warning for warning in found.warnings)
    (varied,) = explainer.explain(networks.model(OnCells(), outputs="binary"), bright(EVIDENCE))
    assert not any("the score is the same" in warning for warning in varied.warnings)


def test_one_constant_image_does_not_cost_another_its_map() -> None:
    net = networks.model(OnCells(), outputs="binary")
    explainer = xaihub.get_explainer("occlusion", **EXPLAINERS["occlusion"])
    first, second = explainer.explain(net, torch.cat([bright(EVIDENCE), torch.zeros(1, 3, SIDE, SIDE)]), "positive")
    assert first.values.any()
    assert not second.values.any()
    assert [len(one.warnings) for one in (first, second)] == [0, 1]


# Softmax over something that is not classes, or what is not computed on scores.
ALLOWED = {
    "xaihub/models/outputs.py": "the one function",
    "xaihub/masking/coalitions.py": "over sizes of coalitions",
    "plugins/xaihub_cam/forward_only.py": "over the channels of a layer",
    "plugins/xaihub_convad/deactivation/rules.py": "the rule for an operation of the network",
    "plugins/xaihub_first_principles/mask_families.py": "over the laws of a mixture",
    "plugins/xaihub_first_principles/vectors/feature_laws.py": "over samples, by distance",
    "plugins/xaihub_metrics_curves/steps.py": "log-odds, exact where a probability rounds to 1",
    "plugins/xaihub_scores_activation/gate.py": "over the features of a gate",
    "plugins/xaihub_scores_activation/reproduction/networks.py": "over the features of a gate",
    "plugins/xaihub_transformers/attention.py": "over tokens",
}
FORBIDDEN = {"softmax", "logsoftmax", "softmin", "sigmoid", "logsigmoid", "expit", "logsumexp"}


def turns_scores_into_probabilities(code: str) -> bool:
    """Whether code uses one of the functions, under whatever name, or a module that applies one."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names}
    return bool({name.replace("_", "").lower() for name in names} & FORBIDDEN)


def test_no_other_module_turns_scores_into_probabilities() -> None:
    files = [file for root in ("xaihub", "plugins", "zoo") for file in (ROOT / root).rglob("*.py")]
    found = {file.relative_to(ROOT).as_posix() for file in files
             if turns_scores_into_probabilities(file.read_text(encoding="utf-8"))}  # fmt: skip
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    "code",
    [
        "logits.softmax(1)", "logits.log_softmax(dim=-1)", "torch.sigmoid(logits)", "F.logsigmoid(x)", "nn.Softmax(1)",
        "from torch.nn.functional import softmax as normalised", "map(torch.sigmoid, rows)", "scipy.special.expit(x)",
        "x - x.logsumexp(1)", "nn.LogSoftmax(1)", "torch.nn.functional.softmin(x)",
    ],
)  # fmt: skip
def test_every_way_to_a_probability_is_found(code: str) -> None:
    assert turns_scores_into_probabilities(code)
    assert not turns_scores_into_probabilities("class_scores(rows, 'probability', outputs)  # a softmax")


class TestMetrics:
    """The scale of each kind, or a refusal with a reason."""

    def case(self, kind: str, target: str | None = None, *, places: Any = (EVIDENCE,)) -> xaihub.Case:
        net = networks.model(OnCells(places), outputs=kind)
        image = bright(EVIDENCE)
        logits = net.predict(image)
        wanted = Target.parse(target, net.classes, net.outputs)
        scene = xaihub.Scene(model=net, image=image[0], logits=logits[0], target=wanted.resolve(logits, net.outputs))
        explainer = xaihub.get_explainer("occlusion", **EXPLAINERS["occlusion"])
        (explanation,) = explainer.explain(net, image, wanted)
        return xaihub.Case(scene=scene, explanation=explanation, explainer=explainer)

    def value(self, name: str, case: xaihub.Case, **values: Any) -> float:
        return xaihub.Hub().get_metric(name, **values).measure(case)[0].value

    def test_deletion_starts_at_the_score_of_each_kind(self) -> None:
        ends = {}
        for kind in ("binary", "multilabel", "regression:years"):
            measured, _ = xaihub.Hub().get_metric("deletion").measure(self.case(kind))
            ends[kind] = (measured.details["whole"], measured.details["empty"])
        probability = 1 / (1 + 2.718281828**-3)
        assert ends["binary"] == ends["multilabel"] == pytest.approx((probability, 1 - probability), abs=1e-6)
        assert ends["regression:years"] == pytest.approx((3.0, -3.0), abs=1e-5)

    def test_log_odds_of_a_sigmoid_are_the_logit(self) -> None:
        for kind in ("binary", "multilabel"):
            case = self.case(kind)
            drop = self.value("log_odds", case, removed=1.0, steps=16)
            assert drop < -5  # most steps follow the evidence, whose removal costs 6

    @pytest.mark.parametrize(
        ("name", "reason"),
        [("log_odds", "have no odds"), ("average_drop", "no confidence"), ("increase_in_confidence", "no confidence"),
         ("sufficient_area", "make no decision"), ("random_logit", "no other class")],
    )  # fmt: skip
    def test_values_refuse_metrics_of_probabilities_and_decisions(self, name: str, reason: str) -> None:
        with pytest.raises(XaihubError, match=reason):
            self.value(name, self.case("regression"))

    def test_the_sign_of_one_logit_is_no_other_class(self) -> None:
        with pytest.raises(XaihubError, match="opposite sign"):
            self.value("random_logit", self.case("binary"))

    def test_a_sufficient_set_keeps_a_label(self) -> None:
        for kind in ("binary", "multilabel"):
            area = self.value("sufficient_area", self.case(kind))
            assert 0 < area < 1 / CELLS**2
        with pytest.raises(XaihubError, match="does not find the label"):
            self.value("sufficient_area", self.case("multilabel", "1", places=(EVIDENCE, OTHER)))
