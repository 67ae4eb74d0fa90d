"""Controls: what they show is known, and none of it comes from the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.filters import sobel
from torch import Tensor, nn

from xaihub import Explainer, Model, ParameterError, Preprocessing
from xaihub_controls import xaihub_register_explainers
from xaihub_controls.method import CentreControl, EdgesControl, RandomControl

SIZE = (3, 24, 40)
CONTROLS = [RandomControl(), EdgesControl(), CentreControl()]


def the_model(mean: float = 0.0, std: float = 1.0) -> Model:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 40, 4))
    preprocessing = Preprocessing(spatial=[], size=SIZE, mean=(mean,) * 3, std=(std,) * 3)
    return Model(module, name="linear", preprocessing=preprocessing)


def images(count: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(count, *SIZE, generator=torch.Generator().manual_seed(seed))


def heat(explainer: Explainer, image: Tensor, *, model: Model | None = None, target: int = 0, seed: int = 0) -> Tensor:
    return explainer.explain(model or the_model(), image, target, seed=seed)[0].heatmap()


@pytest.mark.parametrize("control", CONTROLS, ids=repr)
def test_a_control_never_runs_the_model_and_ignores_the_class(control: Explainer) -> None:
    model = the_model()
    first, second = (control.explain(model, images(), target)[0] for target in (0, 1))
    assert torch.equal(first.values, second.values)
    assert (first.metadata["forward_passes"], first.metadata["backward_passes"]) == (0, 0)
    assert type(control).class_agnostic


@pytest.mark.parametrize("control", CONTROLS, ids=repr)
def test_another_network_gives_the_same_map(control: Explainer) -> None:
    torch.manual_seed(1)
    first = heat(control, images(), model=the_model())
    assert torch.equal(first, heat(control, images(), model=the_model()))


@pytest.mark.parametrize("control", CONTROLS, ids=repr)
def test_an_image_has_one_map_whatever_shares_its_batch(control: Explainer) -> None:
    batch = images(3)
    together = control.explain(the_model(), batch, 0)
    alone = [heat(control, batch[row : row + 1]) for row in range(3)]
    assert all(torch.equal(a.heatmap(), b) for a, b in zip(together, alone, strict=True))


def test_noise_is_uniform_and_unrelated_between_images_and_between_seeds() -> None:
    first = heat(RandomControl(), images(seed=1))
    other_image = heat(RandomControl(), images(seed=2))
    other_seed = heat(RandomControl(), images(seed=1), seed=1)
    assert bool(((first >= 0) & (first < 1)).all())
    assert first.mean().item() == pytest.approx(0.5, abs=0.04)
    assert first.var().item() == pytest.approx(1 / 12, abs=0.01)
    related = torch.corrcoef(torch.stack([first, other_image, other_seed]).flatten(1)) - torch.eye(3)
    assert related.abs().max().item() < 0.12  # 3.7 standard deviations of 960 independent pairs


def test_noise_of_one_seed_is_the_same_again() -> None:
    assert torch.equal(heat(RandomControl(), images(), seed=5), heat(RandomControl(), images(), seed=5))


def test_edges_are_the_sobel_magnitude_of_the_image_as_people_see_it() -> None:
    model = the_model(mean=0.4, std=0.2)
    pixels = images()
    expected = sobel(pixels[0].double().mean(0).numpy())
    found = heat(EdgesControl(), model.preprocessing.normalise(pixels), model=model)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_edges_are_found_at_a_step_and_nowhere_else() -> None:
    image = torch.zeros(1, *SIZE)
    image[..., 20:] = 1
    found = heat(EdgesControl(), image)
    assert found[:, [19, 20]].min() > 0.5
    assert found[:, :19].max() == found[:, 21:].max() == 0


def test_the_centre_is_largest_in_the_middle_symmetric_and_as_wide_as_asked() -> None:
    found = heat(CentreControl(spread=0.25), images())
    assert torch.equal(found, found.flip(0))
    assert torch.equal(found, found.flip(1))
    assert found.argmax().item() in {11 * 40 + 19, 11 * 40 + 20, 12 * 40 + 19, 12 * 40 + 20}
    # Pixel 29 lies 9.5 pixels from the middle, pixel 20 half a pixel; the deviation is a quarter of 40.
    assert (found[11, 29] / found[11, 20]).item() == pytest.approx(np.exp(-(9.5**2 - 0.5**2) / (2 * 10**2)), rel=1e-5)
    assert found[:12, :20].sum().item() == pytest.approx(found.sum().item() / 4, rel=1e-5)


def test_a_spread_of_nothing_is_refused() -> None:
    with pytest.raises(ParameterError, match="spread"):
        heat(CentreControl(spread=0.0), images())


def test_every_record_loads_and_states_that_it_is_not_a_method() -> None:
    specs = xaihub_register_explainers()
    assert [spec.name for spec in specs] == ["control_random", "control_edges", "control_centre"]
    assert all(spec.tags == ("control",) for spec in specs)
    assert all(spec.limits.startswith("A control, not a method") for spec in specs)
    assert [spec.load() for spec in specs] == [type(control) for control in CONTROLS]
