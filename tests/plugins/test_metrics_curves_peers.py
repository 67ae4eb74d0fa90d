"""Curves, ROAD and drops beside torchcam, grad-cam and Quantus."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.plugins.curve_cases import case_of, distinct_heat, model_of, network, photo, scene_of, value
from xaihub import (
    Scene,
)
from xaihub.masking import baseline_image
from xaihub_metrics_curves.areas import Deletion, Insertion
from xaihub_metrics_curves.confidence import AverageDrop, IncreaseInConfidence
from xaihub_metrics_curves.imputation import impute
from xaihub_metrics_curves.road import ROAD


@pytest.fixture
def scene() -> Scene:
    return scene_of(model_of(network(), (3, 48, 48)), photo(), target=2)


# grad-cam hands NumPy a tensor.
from_grad_cam = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")


class GivenMap:
    """What torchcam's metrics want of an extractor, around a map that is given."""

    def __init__(self, model: nn.Module, heat: Tensor) -> None:
        self.model, self.heat = model, heat

    def __call__(self, *_args: object, **_options: object) -> list[Tensor]:
        return [self.heat[None]]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        return cams[0]

    @contextmanager
    def _hooks_off(self) -> Iterator[None]:
        yield


@pytest.mark.parametrize("baseline", ["zero", "blur"])
@pytest.mark.parametrize("output", ["probability", "logit"])
@pytest.mark.parametrize("steps", [1, 18, 64])
def test_insertion_and_deletion_equal_torchcams(scene: Scene, baseline: str, output: str, steps: int) -> None:
    from torchcam.metrics import DeletionInsertionMetric

    heat = distinct_heat()
    peer = DeletionInsertionMetric(
        GivenMap(scene.model.module, heat),
        (lambda logits: logits.softmax(1)) if output == "probability" else None,
        steps=steps,
        baseline=baseline_image(baseline, scene.model, scene.image)[None],
    )
    peer.update(scene.image[None], 2)
    case, options = case_of(scene, heat), {"steps": steps, "baseline": baseline, "output": output}
    assert value(Insertion(**options), case) == pytest.approx(peer.summary()["insertion_auc"], abs=1e-6)
    assert value(Deletion(**options), case) == pytest.approx(peer.summary()["deletion_auc"], abs=1e-6)


@pytest.mark.parametrize("target", [0, 1, 2, 3, 4])
def test_average_drop_and_increase_equal_torchcams(target: int) -> None:
    from torchcam.metrics import ClassificationMetric

    scene, heat = scene_of(model_of(network(), (3, 48, 48)), photo(), target=target), distinct_heat()
    peer = ClassificationMetric(GivenMap(scene.model.module, heat), lambda logits: logits.softmax(1))
    peer.update(scene.image[None], target)
    case = case_of(scene, heat)
    whole = float(scene.score(scene.logits[None]))
    # torchcam adds 1e-7 to the denominator.
    ours = value(AverageDrop(), case) * whole / (whole + 1e-7)
    assert ours == pytest.approx(peer.summary()["avg_drop"], abs=1e-5)
    assert value(IncreaseInConfidence(), case) == peer.summary()["conf_increase"]


@from_grad_cam
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["scattered", "blobs"])
def test_imputation_equals_grad_cams(share: float, kind: str) -> None:
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    image = photo()
    heat = {"scattered": distinct_heat(), "blobs": photo(1, seed=5)[0]}[kind]
    shown = heat < heat.flatten().quantile(1 - share)
    peer = NoisyLinearImputer(noise=0)(image, shown.float())
    torch.testing.assert_close(impute(image, shown), peer, rtol=0, atol=1e-6)


@from_grad_cam
def test_road_equals_grad_cams_up_to_its_sign_for_the_most_relevant_first(scene: Scene) -> None:
    from pytorch_grad_cam.metrics.perturbation_confidence import (
        PerturbationConfidenceMetric,
        RemoveLeastRelevantFirst,
        RemoveMostRelevantFirst,
    )
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    heat = distinct_heat()

    def peer(remove: type) -> float:
        changes = [
            PerturbationConfidenceMetric(remove(percentile, NoisyLinearImputer(noise=0)))(
                scene.image[None], heat.numpy()[None], [lambda logits: logits.softmax(0)[2]], scene.model.module
            )[0]
            for percentile in (75, 50, 25)  # there the percentage that stays
        ]
        return float(np.mean(changes))

    case, options = case_of(scene, heat), {"percentiles": "25,50,75", "noise": 0.0}
    morf, lerf = peer(RemoveMostRelevantFirst), peer(RemoveLeastRelevantFirst)
    assert value(ROAD(**options, order="morf"), case) == pytest.approx(-morf, abs=1e-6)
    assert value(ROAD(**options, order="lerf"), case) == pytest.approx(lerf, abs=1e-6)
    assert value(ROAD(**options), case) == pytest.approx((lerf - morf) / 2, abs=1e-6)


@pytest.fixture
def grey() -> Scene:
    """A one-channel image whose darkest pixel is 0: there Quantus flips pixels, and "black" is our zero."""
    image = photo(1, side=24)
    return scene_of(model_of(network(1), (1, 24, 24)), image - image.min(), target=1)


def test_the_deletion_curve_equals_quantus_pixel_flipping(grey: Scene) -> None:
    quantus = pytest.importorskip("quantus")
    heat = distinct_heat(24)
    peer = quantus.PixelFlipping(
        features_in_step=576 // 18, perturb_baseline="black", abs=False, normalise=False, disable_warnings=True
    )
    theirs = peer(
        model=grey.model.module,
        x_batch=grey.image[None].numpy(),
        y_batch=np.array([1]),
        a_batch=heat[None, None].numpy(),
        softmax=True,
        channel_first=True,
    )
    curve = Deletion(steps=18).measure(case_of(grey, heat))[0].curve
    assert curve is not None
    np.testing.assert_allclose(curve[1][1:], theirs[0], atol=1e-6)  # it leaves out the whole image
