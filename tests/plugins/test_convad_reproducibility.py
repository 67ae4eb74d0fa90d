"""The searches of convad are the same in batches, after an interruption and for a seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.plugins.convad_toys import ONE, SIDE, SMALL, Spots, explained, model_of
from xaihub_convad.explainers import Rex


class TestReproducibility:
    def test_any_batch_size_gives_the_same(self) -> None:
        for values in ({"agreement": 0.5}, {"strategy": "multiple", "alternatives": 2}, {"strategy": "contrastive"}):
            one, three, many = (
                explained(Spots(ONE, (20, 2, 8)), rows=rows, refinements=2, **values) for rows in (1, 3, 500)
            )
            for other in (three, many):
                assert float((one.values - other.values).abs().max()) <= 1e-6
                assert torch.equal(one.extras["standard_error"], other.extras["standard_error"])
                assert [mine.mask.equal(theirs.mask) for mine, theirs in zip(one.sets, other.sets, strict=True)] == [
                    True
                ] * len(one.sets)
                assert one.to_dict()["sets"] == other.to_dict()["sets"]

    def test_the_same_seed_gives_the_same_mask_and_another_seed_another_map(self) -> None:
        first, again, other = (explained(Spots(ONE), seed=seed) for seed in (3, 3, 4))
        assert torch.equal(first.values, again.values)
        assert torch.equal(first.sets[0].mask, again.sets[0].mask)
        assert not torch.equal(first.values, other.values)

    # Inpainting knows one image at a time, so the network's batches are smaller where images meet.
    @pytest.mark.parametrize(
        ("baseline", "share"), [("zero", 0.8), ("noise", 0.8), ("inpaint", 0.4), ("deactivate_most", 0.8)]
    )
    @pytest.mark.parametrize("values", [{"agreement": 0.5}, {"strategy": "multiple", "alternatives": 2}], ids=str)
    def test_images_and_targets_share_batches_and_do_not_see_each_other(
        self, baseline: str, share: float, values: Any
    ) -> None:
        seen: list[int] = []
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 4, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        )
        network.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
        explainer = Rex(**{**SMALL, "iterations": 6, "refinements": 2, "baseline": baseline, **values})
        images = torch.rand(3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
        images[2] = images[1]
        model = model_of(network, 16)
        together = explainer.explain(model, images, "top2", seed=2)
        full = sum(rows == 16 for rows in seen)
        for row in range(3):
            alone = explainer.explain(model_of(network, 16), images[row : row + 1], "top2", seed=2)[0]
            assert torch.allclose(together[row].values, alone.values, atol=1e-6)
            assert [one.role for one in together[row].sets] == [one.role for one in alone.sets]
            assert torch.equal(together[row].sets[0].mask, alone.sets[0].mask)
            assert together[row].metadata["details"]["iterations"] == alone.metadata["details"]["iterations"]
            assert together[row].metadata["forward_passes"] == alone.metadata["forward_passes"]
        assert torch.equal(together[1].values, together[2].values)
        assert full * 16 > share * sum(one.metadata["forward_passes"] for one in together)

    def test_it_stops_when_the_map_has_settled(self) -> None:
        early = explained(Spots(ONE), iterations=60, agreement=0.8).metadata["details"]
        assert 4 <= early["iterations"] < 60
        assert early["expected_agreement"] >= 0.8
        assert explained(Spots(ONE), iterations=9, agreement=1.0).metadata["details"]["iterations"] == 9

    def test_the_expected_agreement_is_what_other_seeds_show(self) -> None:
        found = [explained(Spots(ONE), iterations=10, seed=seed, shrink=0) for seed in range(10)]
        shown = np.corrcoef([one.values.flatten().numpy() for one in found])[np.triu_indices(10, 1)].mean()
        expected = np.mean([one.metadata["details"]["expected_agreement"] for one in found])
        assert expected == pytest.approx(shown, abs=0.1)

    def test_a_map_that_has_not_settled_is_reported(self) -> None:
        found = explained(Spots(ONE), iterations=1, refinements=1)
        assert any("is not stable" in warning for warning in found.warnings)
