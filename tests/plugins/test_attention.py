"""Attention rollout and gradient-weighted attention against literal second implementations and an analytic case."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from xaihub import Explainer, ExplainerRefused, Hints, Model, Preprocessing
from xaihub_attention import xaihub_register_explainers
from xaihub_attention.methods import AttentionGradient, AttentionRollout

BOTH = [AttentionRollout, AttentionGradient]
# Small transformers: a class token; two class tokens; average pooling with a register token; a convolutional stem.
VITS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 3},
    "deit_tiny_distilled_patch16_224": {"img_size": 64, "depth": 2},
    "vit_wee_patch16_reg1_gap_256": {"img_size": 64, "depth": 2},
    "vit_tiny_r_s16_p8_224": {"img_size": 128, "depth": 2},
    "eva02_tiny_patch14_224": {"img_size": 56, "depth": 2},
}


def wrap(module: nn.Module, side: int, prefix: int) -> Model:
    with torch.no_grad():
        torch.manual_seed(0)
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) * (parameter.ndim <= 1))
        for name, parameter in module.named_parameters():
            parameter.mul_(3.0 if "qkv.weight" in name or "q_proj.weight" in name else 1.0)  # attention that differs
    return Model(
        module.eval(),
        name=type(module).__name__,
        preprocessing=Preprocessing(spatial=[], size=(3, side, side), mean=(0.5,) * 3, std=(0.2,) * 3, description={}),
        hints=Hints(prefix_tokens=prefix),
    )


@cache
def build(name: str) -> Model:
    torch.manual_seed(0)
    options = VITS[name]
    module = timm.create_model(name, num_classes=5, **options)
    for head in (module.head, getattr(module, "head_dist", module.head)):
        nn.init.normal_(head.weight, std=0.5)
    return wrap(module, options["img_size"], module.num_prefix_tokens)


def images(model: Model, rows: int = 2) -> Tensor:
    return torch.randn(rows, *model.input_size, generator=torch.Generator().manual_seed(3))


def values(explainer: Explainer, model: Model, inputs: Tensor, target: Any = None) -> Tensor:
    return torch.stack([torch.as_tensor(e.values) for e in explainer.explain(model, inputs, target)])


def attention(model: Model, inputs: Tensor, index: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return maps and their gradients by a path of our own: recomputed from what enters `attn_drop`."""
    maps: list[Tensor] = []
    handles, fused = [], []
    for module in model.module.modules():
        fused += [module] * hasattr(module, "fused_attn")
    for module in fused:
        module.fused_attn = False
        handles.append(module.attn_drop.register_forward_pre_hook(lambda _m, args: maps.append(args[0])))
    logits = model.module(inputs)
    for module, handle in zip(fused, handles, strict=True):
        module.fused_attn = True
        handle.remove()
    return maps, list(torch.autograd.grad(logits[:, index].sum(), maps))


def product(a: list[list[float]], b: list[list[float]]) -> list[list[float]]:
    size = range(len(a))
    return [[sum(a[i][k] * b[k][j] for k in size) for j in size] for i in size]


def literal_rollout(maps: list[Tensor], row: int) -> list[list[float]]:
    """Sec. 3 of Abnar and Zuidema: A = 0.5 W + 0.5 I, and the product over the blocks."""
    tokens = maps[0].shape[-1]
    rollout = [[float(i == j) for j in range(tokens)] for i in range(tokens)]
    for block in maps:
        heads = block[row].tolist()
        A = [
            [0.5 * sum(head[i][j] for head in heads) / len(heads) + 0.5 * (i == j) for j in range(tokens)]
            for i in range(tokens)
        ]
        rollout = product(A, rollout)
    return rollout


def literal_relevance(maps: list[Tensor], gradients: list[Tensor], row: int) -> list[list[float]]:
    """Eq. 5 and 6 of Chefer et al., from R = I."""
    tokens = maps[0].shape[-1]
    R = [[float(i == j) for j in range(tokens)] for i in range(tokens)]
    for block, gradient in zip(maps, gradients, strict=True):
        A, G = block[row].tolist(), gradient[row].tolist()
        heads = range(len(A))
        bar = [
            [sum(max(G[h][i][j] * A[h][i][j], 0.0) for h in heads) / len(A) for j in range(tokens)]
            for i in range(tokens)
        ]
        update = product(bar, R)
        R = [[R[i][j] + update[i][j] for j in range(tokens)] for i in range(tokens)]
    return R


# name, the rows that are read, tokens before the patches, cells a side
READ = [
    ("vit_tiny_patch16_224", [0], 1, 4),
    ("deit_tiny_distilled_patch16_224", [0, 1], 2, 4),
    ("vit_wee_patch16_reg1_gap_256", list(range(1, 17)), 1, 4),
    ("vit_tiny_r_s16_p8_224", [0], 1, 4),
    ("eva02_tiny_patch14_224", list(range(1, 17)), 1, 4),
]


def map_of(relevance: list[list[float]], rows: list[int], prefix: int, side: int, size: int) -> Tensor:
    cells = [sum(relevance[i][prefix + j] for i in rows) / len(rows) for j in range(len(relevance) - prefix)]
    grid = torch.tensor(cells).view(1, 1, side, side)
    return interpolate(grid, size=(size, size), mode="bilinear", align_corners=False)[0]


def test_the_plugin_registers_both_by_name() -> None:
    specs = {spec.name: spec for spec in xaihub_register_explainers()}
    assert {name: spec.load() for name, spec in specs.items()} == {
        "attention_rollout": AttentionRollout,
        "attention_gradient": AttentionGradient,
    }
    assert all("attention" in spec.needs and spec.paper and spec.variant and spec.limits for spec in specs.values())


@pytest.mark.parametrize(("name", "rows", "prefix", "side"), READ)
def test_rollout_equals_the_papers_product(name: str, rows: list[int], prefix: int, side: int) -> None:
    model = build(name)
    inputs = images(model)
    maps, _ = attention(model, inputs, 0)
    found = values(AttentionRollout(), model, inputs)
    for row in range(2):
        expected = map_of(literal_rollout(maps, row), rows, prefix, side, inputs.shape[-1])
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "rows", "prefix", "side"), READ)
def test_gradient_weighted_attention_equals_eq_5_and_6(name: str, rows: list[int], prefix: int, side: int) -> None:
    model = build(name)
    inputs = images(model)
    maps, gradients = attention(model, inputs, 3)
    found = values(AttentionGradient(), model, inputs, 3)
    for row in range(2):
        expected = map_of(literal_relevance(maps, gradients, row), rows, prefix, side, inputs.shape[-1])
        assert expected.max() > 1e-6
        torch.testing.assert_close(found[row], expected, rtol=1e-3, atol=1e-5 * float(expected.max()))


class OneBlock(nn.Module):
    """Four patches and a class token; one attention layer whose probabilities and values are set by hand."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fused_attn = True
            self.attn_drop = nn.Dropout(0.0)
            self.probabilities = nn.Parameter(torch.tensor([0.1, 0.4, 0.2, 0.2, 0.1]).expand(1, 1, 5, 5).contiguous())

        def forward(self, tokens: Tensor) -> Tensor:
            attn = self.attn_drop((self.probabilities + 0 * tokens.mean()).expand(len(tokens), -1, -1, -1))
            return (attn @ tokens.unsqueeze(1)).squeeze(1)

    class Tokens(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            patches = nn.functional.avg_pool2d(pixels[:, :1], 4).flatten(2).transpose(1, 2)
            return torch.cat([0 * patches[:, :1], patches], 1)

    def __init__(self) -> None:
        super().__init__()
        self.tokens = OneBlock.Tokens()
        self.attn = OneBlock.Attention()
        self.head = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[2.0], [-2.0]]))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.attn(self.tokens(pixels))[:, 0])


def one_block() -> tuple[Model, Tensor]:
    module = OneBlock()
    model = Model(
        module,
        name="one block",
        preprocessing=Preprocessing(spatial=[], size=(3, 8, 8), mean=(0.5,) * 3, std=(0.2,) * 3, description={}),
    )
    patches = torch.tensor([[1.0, -1.0], [3.0, 0.5]])
    return model, patches.repeat_interleave(4, 0).repeat_interleave(4, 1).expand(1, 3, 8, 8).clone()


def test_one_block_has_the_values_worked_out_by_hand() -> None:
    model, image = one_block()
    # The score of class 0 is 2 sum_j A[0, j] x_j, so dy/dA[0, j] = 2 x_j and relevance is (2 x_j A[0, j])+.
    expected = torch.tensor([[2 * 1 * 0.4, 0.0], [2 * 3 * 0.2, 2 * 0.5 * 0.1]])
    found = values(AttentionGradient(), model, image, 0)[0]
    torch.testing.assert_close(found, interpolate(expected[None, None], size=(8, 8), mode="bilinear")[0])
    # Class 1 has the opposite gradient: only the negative patch speaks for it.
    opposite = torch.tensor([[0.0, 2 * 1 * 0.2], [0.0, 0.0]])
    found = values(AttentionGradient(), model, image, 1)[0]
    torch.testing.assert_close(found, interpolate(opposite[None, None], size=(8, 8), mode="bilinear")[0])
    # Rollout: half of the class token's own attention, whatever the patches hold.
    half = torch.tensor([[0.2, 0.1], [0.1, 0.05]])
    found = values(AttentionRollout(), model, image, 0)[0]
    torch.testing.assert_close(found, interpolate(half[None, None], size=(8, 8), mode="bilinear")[0])


@pytest.mark.parametrize("fusion", ["max", "min"])
def test_heads_are_fused_as_chosen(fusion: str) -> None:
    model = build("vit_tiny_patch16_224")
    inputs = images(model, 1)
    maps, _ = attention(model, inputs, 0)
    fused = []
    for block in maps:
        heads, pick = block[0].tolist(), {"max": max, "min": min}[fusion]
        W = torch.tensor([[[pick(head[i][j] for head in heads) for j in range(17)] for i in range(17)]])
        # Rows that no longer sum to one are brought back to it together with the identity.
        A = 0.5 * W + 0.5 * torch.eye(17)
        fused.append(2 * A / A.sum(-1, keepdim=True) - torch.eye(17))
    expected = map_of(literal_rollout([block[None] for block in fused], 0), [0], 1, 4, 64)
    found = values(AttentionRollout(head_fusion=fusion), model, inputs)[0]  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_discarding_drops_the_weakest_attentions_of_each_image() -> None:
    model = build("vit_tiny_patch16_224")
    inputs = images(model)
    maps, _ = attention(model, inputs, 0)
    for row in range(2):
        fused = []
        for block in maps:
            W = block[row].mean(0).detach()
            weakest = sorted(W.flatten().tolist())[int(0.9 * 17 * 17) - 1]
            A = 0.5 * torch.where(weakest < W, W, 0) + 0.5 * torch.eye(17)
            fused.append((2 * A / A.sum(-1, keepdim=True) - torch.eye(17))[None, None])
        expected = map_of(literal_rollout(fused, 0), [0], 1, 4, 64)
        found = values(AttentionRollout(discard=0.9), model, inputs)[row]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_rollout_is_the_same_for_every_class_and_the_gradient_is_not() -> None:
    model = build("vit_tiny_patch16_224")
    inputs = images(model, 1)
    assert torch.equal(values(AttentionRollout(), model, inputs, 1), values(AttentionRollout(), model, inputs, 2))
    assert not torch.allclose(
        values(AttentionGradient(), model, inputs, 1), values(AttentionGradient(), model, inputs, 2), rtol=0.1
    )


@pytest.mark.parametrize("kind", BOTH)
def test_each_row_of_a_batch_has_its_own_target_and_map(kind: type[Explainer]) -> None:
    model = build("vit_tiny_patch16_224")
    inputs = images(model, 3)
    together = values(kind(), model, inputs, "top2")
    alone = torch.cat([values(kind(), model, inputs[row : row + 1], "top2") for row in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-6)


def test_a_contrast_explains_the_difference_of_the_scores() -> None:
    model, image = one_block()
    contrast = values(AttentionGradient(), model, image, "0 vs 1")
    torch.testing.assert_close(contrast, 2 * values(AttentionGradient(), model, image, 0))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("vit_tiny_patch16_224", "1 + 4x4 tokens, read at the class token"),
        ("deit_tiny_distilled_patch16_224", "2 + 4x4 tokens, read at the mean of 2 class tokens"),
        ("vit_wee_patch16_reg1_gap_256", "1 + 4x4 tokens, read at the mean of 16 tokens"),
    ],
)
def test_the_record_names_blocks_grid_and_readout(name: str, found: str) -> None:
    model = build(name)
    for kind in BOTH:
        explanation = kind().explain(model, images(model, 1), 0)[0]
        assert found in explanation.metadata["layer"]


REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    ("test_resnet", {}, 96, "no attention"),
    ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4, "depths": (1, 1, 1, 1)}, 64, "windows"),
    ("xcit_nano_12_p16_224", {"depth": 1}, 64, "not from every token to every token: 1x4x32x32"),
    ("cait_xxs24_224", {"img_size": 64, "depth": 2}, 64, "TalkingHeadAttn"),
    ("levit_128s", {"img_size": 64}, 64, "no attention"),
    ("mobilevit_xxs", {}, 128, "windows"),
    ("pit_ti_224", {"img_size": 64}, 64, "changes the number of tokens"),
    ("test_vit3", {"img_size": 64}, 64, "'attn_pool' .AttentionPoolLatent."),
    ("volo_d1_224", {"img_size": 64}, 64, "OutlookAttention"),
    ("vit_small_patch16_18x2_224", {"img_size": 64, "depth": 2}, 64, "side by side"),
    ("mixer_s32_224", {"img_size": 128}, 128, "no attention"),
]


@pytest.mark.parametrize(("name", "options", "side", "reason"), REFUSED)
def test_other_attention_is_refused_with_what_was_found(
    name: str, options: dict[str, Any], side: int, reason: str
) -> None:
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=5, **options)
    model = wrap(module, side, getattr(module, "num_prefix_tokens", 0))
    for kind in BOTH:
        with pytest.raises(ExplainerRefused, match=reason):
            kind().explain(model, images(model, 1), 0)


def test_attention_that_is_not_a_probability_is_refused() -> None:
    model, image = one_block()
    with torch.no_grad():
        model.module.attn.probabilities[0, 0, 0, 1] = 0.9
    with pytest.raises(ExplainerRefused, match="not a probability"):
        AttentionRollout().explain(model, image, 0)


def test_a_classifier_that_ignores_attention_is_refused() -> None:
    model, image = one_block()
    assert model.structure.blocks
    with torch.no_grad():
        model.module.head.weight.zero_()
    with pytest.raises(ExplainerRefused, match="do not depend on its last attention"):
        AttentionRollout().explain(model, image, 0)


@pytest.mark.parametrize("kind", BOTH)
def test_fused_attention_is_back_on_even_after_a_failure(kind: type[Explainer]) -> None:
    model = build("vit_tiny_patch16_224")
    flags = [module.fused_attn for module in model.module.modules() if hasattr(module, "fused_attn")]

    def fail(*_: Any) -> None:
        raise RuntimeError("broken on purpose")

    values(kind(), model, images(model, 1), 0)
    during: list[bool] = []
    last = model.module.blocks[-1]
    watch = last.register_forward_hook(lambda *_: during.append(last.attn.fused_attn))
    broken = model.module.norm.register_forward_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="broken on purpose"):
            kind().attribute(model, images(model, 1), None)  # type: ignore[arg-type]
    finally:
        watch.remove()
        broken.remove()
    assert during == [False]
    after = [module.fused_attn for module in model.module.modules() if hasattr(module, "fused_attn")]
    assert after == flags == [True] * 3
    assert not any(module._forward_hooks for module in model.module.modules())
