"""Other tools that hide pixels with a value drive the deactivated network: hidden pixels arrive as NaN."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from xaihub import Model, ModelError, Preprocessing
from xaihub.masking import Fill, masked_forward_passes
from xaihub_convad.deactivation import Deactivation, MaskedNetwork

SIDE = 32


class Seen(nn.Module):
    """Class 0 needs the bright square of rows 8 to 15 and columns 16 to 23; a convolution reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.blur = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        nn.init.constant_(self.blur.weight, 1 / 9)
        region = torch.zeros(1, 1, SIDE, SIDE)
        region[..., 8:16, 16:24] = 1 / 64
        self.register_buffer("region", region)
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        evidence = 10 * (self.blur(x) * self.region).sum((1, 2, 3)) - 4
        return torch.stack([evidence, torch.zeros_like(evidence)], 1)


def masks_of_boxes(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(count, 1, SIDE, SIDE, dtype=torch.bool)
    for mask, (top, left) in zip(masks, torch.randint(0, SIDE // 2, (count, 2), generator=generator), strict=True):
        mask[:, top : top + 20, left : left + 16] = True
    return masks


@torch.inference_mode()
def test_a_tool_that_fills_with_nan_gets_what_a_mask_gives() -> None:
    network, image = Seen(), torch.ones(1, SIDE, SIDE)
    masks = masks_of_boxes(12)
    filled = torch.where(masks, image, torch.nan)  # what rex-xai does with mask_value="none"
    answers = MaskedNetwork(network)(filled)
    expected = Deactivation().forward(network, image.expand(12, -1, -1, -1), masks.float())
    assert torch.equal(answers, expected)
    assert bool(answers.isfinite().all())
    assert set(answers.argmax(1).tolist()) == {0, 1}
    assert torch.equal(MaskedNetwork(network)(image[None]), network(image[None]))


@torch.inference_mode()
def test_one_channel_that_is_nan_hides_the_pixel() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    inputs = torch.randn(2, 3, SIDE, SIDE)
    mask = torch.ones(2, 1, SIDE, SIDE)
    mask[:, :, :8] = 0
    partly = inputs.clone()
    partly[:, 1, :8] = torch.nan
    assert torch.equal(MaskedNetwork(network)(partly), MaskedNetwork(network)(inputs, mask))


def test_a_plain_network_is_refused_since_nan_reaches_its_scores() -> None:
    plain = Preprocessing(spatial=(), size=(1, SIDE, SIDE), mean=(0.0,), std=(1.0,))
    model, image = Model(Seen(), name="plain", preprocessing=plain), torch.ones(1, SIDE, SIDE)
    with pytest.raises(ModelError, match="NaN or infinite"):
        list(
            masked_forward_passes(
                model, image, masks_of_boxes(2).float(), removal=Fill(torch.full_like(image, torch.nan))
            )
        )


@pytest.mark.filterwarnings("ignore")
def test_rex_xai_searches_the_deactivated_network() -> None:
    pytest.importorskip("rex_xai")
    from rex_xai.explanation.explanation import Explanation
    from rex_xai.explanation.rex import calculate_responsibility, predict_target
    from rex_xai.input.config import CausalArgs
    from rex_xai.input.input_data import Data
    from rex_xai.responsibility.prediction import default_prediction_function

    network, image = Seen(), torch.ones(1, SIDE, SIDE)
    ask = default_prediction_function(MaskedNetwork(network))
    args = CausalArgs()
    args.iters, args.seed, args.batch_size, args.mask_value, args.progress_bar = 8, 0, 14, "none", False
    data = Data(None, ["N", 1, SIDE, SIDE], "cpu", mode="RGB")
    data.data = image[None]
    data.set_mask_value(args.mask_value)
    data.target = predict_target(data, args, ask)
    maps, statistics = calculate_responsibility(data, args, ask)
    found = Explanation(maps, ask, data, args, statistics)
    found.extract()
    mask = found.sufficiency_mask.reshape(1, 1, SIDE, SIDE)
    with torch.inference_mode():
        answer = Deactivation().forward(network, image[None], mask.float())
    assert int(answer.argmax()) == data.target.classification == 0
    assert float(answer.softmax(1)[0, 0]) == pytest.approx(found.sufficiency_confidence, abs=1e-4)
    assert float(mask.float().mean()) < 0.5
    assert len(network.calls) > 8
