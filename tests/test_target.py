"""What is explained: classes by index, name, rank and contrast."""

from __future__ import annotations

import pytest
import torch
from timm.data import ImageNetInfo

from xaihub import ResolvedTarget, Target
from xaihub.errors import InputError, ParameterError

INFO = ImageNetInfo("imagenet-1k")
IMAGENET = tuple(INFO.index_to_description(index, detailed=False) for index in range(1000))
LOGITS = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 1.0, 4.0, 2.0]])


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("285", 285),
        (285, 285),
        (" 285 ", 285),
        ("Egyptian cat", 285),
        ("egyptian CAT", 285),
        ("tabby", 281),
        ("tabby cat", 281),
        ("tabby, tabby cat", 281),
        ("maillot, tank suit", 639),
        ("sunglass", 836),
    ],
)
def test_a_class_is_found_by_index_name_or_synonym_in_any_case(text: str | int, index: int) -> None:
    assert Target.parse(text, IMAGENET) == Target(index=index)


@pytest.mark.parametrize(
    ("text", "indices"), [("crane", (134, 517)), ("maillot", (638, 639)), ("cardigan", (264, 474))]
)
def test_an_ambiguous_name_lists_the_indices(text: str, indices: tuple[int, int]) -> None:
    with pytest.raises(InputError) as caught:
        Target.parse(text, IMAGENET)
    assert caught.value.message == f"2 classes are named {text!r}"
    assert all(str(index) in caught.value.hint for index in indices)


def test_near_class_names_are_suggested() -> None:
    with pytest.raises(InputError, match="no class is named 'Egyptain cat'.*did you mean 'Egyptian cat'"):
        Target.parse("Egyptain cat", IMAGENET)


@pytest.mark.parametrize("text", ["", "   ", "zzzzzz"])
def test_a_name_like_no_other_asks_for_the_index(text: str) -> None:
    with pytest.raises(InputError, match="give the class index"):
        Target.parse(text, IMAGENET)


def test_a_name_needs_a_model_with_names() -> None:
    with pytest.raises(InputError, match="the model has no class names"):
        Target.parse("cat")


@pytest.mark.parametrize("text", ["-1", "1000", "top0", "top1001", 1000])
def test_an_index_or_rank_out_of_range_is_refused(text: str | int) -> None:
    with pytest.raises(ParameterError, match="out of range"):
        Target.parse(text, IMAGENET)


@pytest.mark.parametrize(
    ("target", "message"), [(Target(index=4), "class 4"), (Target(rank=4), "rank 4"), (Target(index=-1), "class -1")]
)
def test_a_class_or_rank_that_the_model_lacks_is_refused(target: Target, message: str) -> None:
    with pytest.raises(ParameterError, match=f"{message} is out of range.*4 outputs"):
        target.resolve(LOGITS)


@pytest.mark.parametrize(
    ("text", "indices"),
    [(None, [1, 0]), ("predicted", [1, 0]), ("top1", [1, 0]), ("top2", [3, 2]), ("Top-4", [0, 1]), ("2", [2, 2])],
)
def test_each_row_gets_its_own_class(text: str | None, indices: list[int]) -> None:
    assert Target.parse(text).resolve(LOGITS).index.tolist() == indices


@pytest.mark.parametrize("text", ["tabby vs Egyptian cat", "tabby vs. 285", "281 VERSUS Egyptian cat"])
def test_a_contrast_names_two_classes(text: str) -> None:
    assert Target.parse(text, IMAGENET) == Target(index=281, against=Target(index=285))


def test_a_contrast_may_use_ranks() -> None:
    resolved = Target.parse("top1 vs top2").resolve(LOGITS)
    assert resolved.against is not None
    assert (resolved.index.tolist(), resolved.against.tolist()) == ([1, 0], [3, 2])
    assert resolved.score(LOGITS).tolist() == [1.0, 1.0]


def test_a_contrast_of_three_classes_is_refused() -> None:
    with pytest.raises(ParameterError, match="more than two classes"):
        Target.parse("1 vs 2 vs 3")


@pytest.mark.parametrize("text", ["2 vs 2", "top1 vs predicted", "top1 vs 1"])
def test_a_class_against_itself_is_refused_instead_of_drawing_zeros(text: str) -> None:
    with pytest.raises(ParameterError, match="compares class [12] with itself"):
        Target.parse(text).resolve(LOGITS)


def test_a_score_is_the_output_of_each_rows_class() -> None:
    assert Target(index=2).resolve(LOGITS).score(LOGITS).tolist() == [1.0, 4.0]
    assert Target().resolve(LOGITS).score(LOGITS).tolist() == [3.0, 5.0]


def test_a_score_is_a_logit_a_probability_or_its_logarithm() -> None:
    target = Target.parse("2 vs 1").resolve(LOGITS)
    probability = LOGITS.softmax(1)
    for output, scores in {"logit": LOGITS, "probability": probability, "log_probability": probability.log()}.items():
        torch.testing.assert_close(target.score(LOGITS, output=output), scores[:, 2] - scores[:, 1])
    with pytest.raises(ParameterError, match="output cannot be 'odds'"):
        target.score(LOGITS, output="odds")


def test_a_resolved_target_can_be_asked_for_again() -> None:
    assert Target.parse("top1 vs top3").resolve(LOGITS).fixed() == Target(
        index=int(LOGITS[0].argmax()), against=Target(index=int(LOGITS[0].topk(3).indices[2]))
    )
    assert Target(index=2).resolve(LOGITS).fixed() == Target(index=2)


def test_one_target_scores_any_number_of_rows() -> None:
    outputs = torch.randn(7, 4)
    one = ResolvedTarget(index=torch.tensor([3]), against=torch.tensor([1]))
    assert torch.equal(one.score(outputs), outputs[:, 3] - outputs[:, 1])


def test_targets_can_be_sliced_with_their_contrasts() -> None:
    both = Target.parse("top1 vs top3").resolve(LOGITS)
    second = both[1:2]
    assert len(both) == 2
    assert len(second) == 1
    assert second.score(LOGITS[1:]).tolist() == [3.0]


def test_a_ready_target_passes_through() -> None:
    target = Target(rank=1)
    assert Target.parse(target, IMAGENET) is target


def test_a_class_named_by_a_number_is_meant_by_that_name_and_an_index_by_an_int() -> None:
    names = ["1", "10", "11", "12", "2"]
    assert Target.parse("2", names).index == 4
    assert Target.parse("12", names).index == 3
    assert Target.parse(2, names).index == 2
    assert Target.parse("0", names).index == 0  # no class has that name
    assert Target.parse("2 vs 10", names).against == Target(index=1)


def test_a_masked_image_keeps_a_rank_or_the_lead_of_a_contrast() -> None:
    whole = torch.tensor([[1.0, 3.0, 2.0]])
    outputs = torch.tensor([[0.0, 1.0, 2.0], [2.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
    second = Target(index=2).resolve(whole)
    assert second.ahead(outputs).tolist() == [0, 0, 2]
    assert second.kept(outputs, whole).tolist() == [True, True, False]
    contrast = Target(index=1, against=Target(index=0)).resolve(whole)
    assert contrast.kept(outputs, whole).tolist() == [True, False, False]
