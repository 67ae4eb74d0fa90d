"""Registration from a script or a notebook, and the commands as functions."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import Resize

import xaihub
from xaihub.errors import InputError, ModelError, ParameterError, PluginError, UnknownName
from xaihub.hub import session
from xaihub.masking import Fill, Removal
from xaihub.params import Meta


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    session.clear()


class Plain(xaihub.Explainer):
    """Constant map.

    More of it.
    """

    limits = "Shows nothing."
    level: Annotated[float, Meta(ge=0)] = 1.0

    def attribute(self, model: Any, inputs: Tensor, target: Any) -> Tensor:
        return inputs[:, :1] * 0 + self.level + torch.arange(inputs.shape[-1])


class MapSpread(xaihub.Metric):
    """Standard deviation of the map."""

    higher_is_better = None

    def score(self, case: Any) -> float:
        return float(case.heat.std())


class Halved(xaihub.Objective):
    """Half the cross-entropy."""

    def loss(self, network: Any, images: Tensor, labels: Tensor, step: Any) -> xaihub.Losses:
        logits = network(images)
        return xaihub.Losses(terms={"halved": nn.functional.cross_entropy(logits, labels) / 2}, logits=logits)


def grey(model: Any, image: Tensor) -> Removal:
    """A grey fill."""
    return Fill(torch.full_like(image, 0.5))


class TestNames:
    def test_a_class_is_known_by_its_name_with_the_facts_of_its_record(self) -> None:
        assert xaihub.register(Plain) is Plain

        spec = xaihub.Hub().explainers.get("plain")
        assert (spec.summary, spec.limits, spec.plugin) == ("Constant map.", "Shows nothing.", "session")
        assert spec.load() is Plain
        assert "plain" in xaihub.Hub().explainers.names()
        assert xaihub.get_explainer("session/plain", level=2).parameters == {"level": 2.0}

    def test_fields_of_the_record_can_be_given(self) -> None:
        @xaihub.register(name="mine", summary="My own.")
        class Other(Plain):
            pass

        spec = xaihub.Hub().explainers.get("mine")
        assert (spec.summary, spec.limits) == ("My own.", "Shows nothing.")
        assert xaihub.get_explainer("mine").name == "mine"
        assert isinstance(xaihub.get_explainer("mine"), Other)

    def test_a_class_registered_again_replaces_the_first(self) -> None:
        xaihub.register(Plain, name="mine")
        xaihub.register(Plain, name="other")
        second = xaihub.register(type("Second", (Plain,), {}), name="mine")

        assert type(xaihub.get_explainer("mine")) is second

    @pytest.mark.parametrize(
        ("thing", "facts", "reason"),
        [
            (Plain, {"name": "gradcam"}, "explainer 'gradcam' belongs to plugin 'cam' (give another"),
            (Plain, {"name": "-x"}, "'-x' cannot be a name"),
            (Plain, {"name": "x" * 101}, "cannot be a name"),
            (Plain, {"colour": "red"}, "a record has no field 'colour' (known: cost, "),
            (Plain, {"needs": 5}, "Plain.needs cannot be 5"),
            (xaihub.Explainer, {}, "Explainer is abstract (define attribute)"),
            (nn.Linear, {}, "Linear cannot be registered (derive a class from Explainer, "),
            (7, {}, "7 cannot be registered"),
        ],
    )
    def test_what_cannot_be_registered_is_one_line(self, thing: Any, facts: dict[str, Any], reason: str) -> None:
        with pytest.raises(PluginError) as caught:
            xaihub.register(thing, **facts)
        assert str(caught.value).startswith(reason) or reason in str(caught.value)
        assert session._objects == {}

    def test_metrics_objectives_and_baselines_are_registered_as_well(self) -> None:
        for thing in (MapSpread, Halved, grey):
            xaihub.register(thing)
        hub = xaihub.Hub()

        assert hub.metrics.get("map_spread").higher_is_better is None
        assert isinstance(hub.get_objective("halved"), Halved)
        assert hub.baselines.get("grey").load() is grey

    def test_a_baseline_is_seen_by_models_that_were_loaded_before(self) -> None:
        model = _toy()
        before = xaihub.explain(model=model, explainer="occlusion", target=0, window=4, stride=4)

        xaihub.register(grey)
        after = xaihub.explain(model=model, explainer="occlusion", target=0, window=4, stride=4, baseline="grey")

        assert after.metadata["parameters"]["baseline"] == "grey"
        assert not torch.equal(before.values, after.values)
        assert copy.deepcopy(model.baselines).keys() == set(model.baselines)


def _toy() -> xaihub.Model:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 3))
    preprocessing = xaihub.Preprocessing(
        spatial=[Resize((16, 16))], size=(3, 16, 16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    return xaihub.Model(network, name="toy", preprocessing=preprocessing)


class TestWithoutAName:
    def test_a_class_is_an_explainer_and_takes_parameters(self) -> None:
        explanation = xaihub.explain(model=_toy(), explainer=Plain, level=3)

        assert explanation.explainer == "plain"
        assert explanation.metadata["parameters"] == {"level": 3.0}
        assert float(explanation.values[0, 0, 0]) == 3

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            ({"explainer": MapSpread}, "MapSpread is not an explainer"),
            ({"explainer": 5}, "int is not an explainer"),
            ({"explainer": Plain, "depth": 3}, "Plain has no parameter 'depth'"),
            ({"explainer": Plain(), "level": 3}, "level cannot be combined with an explainer instance"),
            (
                {"model": nn.Linear(2, 2)},
                "model is a Linear, which says nothing about its inputs (wrap a network: ",
            ),
            ({"model": None}, "model is a NoneType"),
        ],
    )
    def test_what_cannot_be_used_is_one_helpful_line(self, arguments: dict[str, Any], reason: str) -> None:
        with pytest.raises(ParameterError) as caught:
            xaihub.explain(**{"model": _toy(), **arguments})
        assert reason in str(caught.value)


class TestCommandsAsFunctions:
    def test_compare_takes_names_classes_instances_and_models(self, tmp_path: Path) -> None:
        found = xaihub.compare(
            models=_toy(), explainers=["saliency", Plain, Plain(level=2)], params={"plain.level": 5}, target="1"
        )

        (row,) = found.explanations
        assert [item.explainer for item in row] == ["saliency", "plain", "Plain"]
        assert [item.metadata["parameters"].get("level") for item in row] == [None, 5.0, 2.0]
        assert found.failures == []
        assert found.save_png(tmp_path / "grid.png").stat().st_size > 0

    @pytest.mark.parametrize("kind", ["array", "photo", "bytes"])
    def test_compare_takes_images_in_memory(self, kind: str) -> None:
        file = xaihub.sample_photo()
        photo = PIL.Image.open(file)
        image = {"array": np.asarray(photo), "photo": photo, "bytes": file.read_bytes()}[kind]

        ((one,),) = xaihub.compare(image, models=_toy(), explainers="saliency").explanations
        ((same,),) = xaihub.compare(file, models=_toy(), explainers="saliency").explanations

        np.testing.assert_array_equal(one.values, same.values)

    def test_compare_says_in_one_line_what_no_image_is(self) -> None:
        with pytest.raises(InputError, match="array"):
            xaihub.compare(object(), models=_toy(), explainers="saliency")

    def test_class_names_are_given_as_a_list_or_a_file(self, tmp_path: Path) -> None:
        names = ["one", "two"]
        (tmp_path / "names.txt").write_text("one\ntwo\n")
        card = tmp_path / "card.yaml"
        card.write_text("name: tiny\narchitecture: test_resnet\nweights: {source: none}\nnum_classes: 2\n")

        listed = xaihub.load_model(str(card), classes=names)

        assert [*listed.classes] == [*xaihub.load_model(str(card), classes=tmp_path / "names.txt").classes] == names
        assert listed.loaded is not None
        assert [*xaihub.load_model(listed.loaded["name"], classes=listed.loaded["classes"]).classes] == names
        for wrong in (3, [], [1, 2]):
            with pytest.raises(ModelError, match="no list of names"):
                xaihub.load_model(str(card), classes=wrong)  # type: ignore[arg-type]

    def test_compare_refuses_parameters_that_nothing_takes(self) -> None:
        with pytest.raises(ParameterError, match="saliency has no parameter 'level'"):
            xaihub.compare(models=_toy(), explainers="saliency", params={"level": 5})

    def test_a_registered_explainer_and_metric_are_evaluated_by_class_and_by_name(self, tmp_path: Path) -> None:
        xaihub.register(Plain)
        xaihub.register(MapSpread)

        found = xaihub.evaluate(
            xaihub.sample_photo(),
            explainers=[Plain],
            metrics="map_spread",
            params={"level": 2},
            no_controls=True,
            output=tmp_path / "run",
        )

        (board,) = found.boards
        assert board.explainers == ["plain"]
        assert found.scores["metric"].tolist() == ["map_spread"]
        assert found.failed == {}
        again = xaihub.evaluate(resume=found.folder, metrics="sparseness", no_controls=True)
        assert set(again.scores["metric"]) == {"map_spread", "sparseness"}

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            ({}, "no images to evaluate on"),
            ({"images": "x", "explainers": Plain}, "Plain has no name (decorate the class with @xaihub.register)"),
            ({"only_missing": True}, "only_missing requires resume"),
            ({"images": "x", "colour": 1}, "evaluate has no argument 'colour'"),
            ({"images": "x"}, "no output folder for the run"),
            ({"config": "a", "resume": "b"}, "a resumed run takes its plan from the run"),
        ],
    )
    def test_evaluate_refuses_what_makes_no_plan(self, arguments: dict[str, Any], reason: str) -> None:
        with pytest.raises(ParameterError) as caught:
            xaihub.evaluate(**arguments)
        assert reason in str(caught.value)

    def test_a_registered_objective_trains_a_model_that_every_function_takes(self, tmp_path: Path) -> None:
        xaihub.register(Halved)

        outcome = xaihub.train(
            "digits", model="test_resnet", scratch=True, objective=Halved, epochs=1, size=32, output=tmp_path / "run"
        )

        assert xaihub.explain(model=str(outcome.card), explainer="saliency").values.shape[-1] == 32
        with pytest.raises(xaihub.ExplainerRefused, match="has no gate"):
            xaihub.rank(models=str(outcome.card))
        (ranking,) = xaihub.rank(
            xaihub.sample_photo(), models=str(outcome.card), explainers="shap_global", params={"background": 1}
        )
        assert len(ranking.table(3)) == 3

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            ({}, "no data to train on"),
            ({"data": "digits"}, "no output folder for the run"),
            ({"data": "digits", "resume": "x"}, "a resumed run takes its plan from the run"),
            ({"data": "digits", "objective": Halved}, "Halved has no name"),
            ({"data": "digits", "output": "x", "colour": 3}, "colour"),
        ],
    )
    def test_train_refuses_what_makes_no_plan(self, arguments: dict[str, Any], reason: str) -> None:
        with pytest.raises(ParameterError) as caught:
            xaihub.train(**arguments)
        assert reason in str(caught.value)

    def test_names_that_do_not_exist_are_one_line(self) -> None:
        with pytest.raises(UnknownName, match="no explainer is named 'plain'"):
            xaihub.compare(models=_toy(), explainers="plain")
