"""Names of output files: unique, portable, of bounded length, found in linear time."""

from __future__ import annotations

import time
import unicodedata

import pytest

from xaihub.images.naming import IMAGE, OutputNames, file_names, image_stem, safe_name


def test_a_plain_name_stays_as_it_is() -> None:
    names = OutputNames(["resnet50"], ["gradcam"], ["photos/cat.jpg", "-", "photos/été 1.png"])
    assert names.stem("resnet50", "gradcam", "photos/cat.jpg") == "cat__resnet50__gradcam"
    assert names.stem("resnet50", "gradcam", "-") == "stdin__resnet50__gradcam"
    assert names.stem("resnet50", "gradcam", "photos/été 1.png") == "été_1__resnet50__gradcam"
    assert names.stem("resnet50", "gradcam") == "resnet50__gradcam"


def test_a_given_target_is_part_of_the_name_so_that_results_for_several_are_kept() -> None:
    def stem(target: str | None) -> str:
        return OutputNames(["resnet50"], ["gradcam"], ["cat.jpg"], target).stem("resnet50", "gradcam", "cat.jpg")

    assert stem(None) == "cat__resnet50__gradcam"
    assert stem("Egyptian cat") == "cat__resnet50__gradcam__Egyptian_cat"
    assert stem("tabby vs tiger cat") != stem("tabby vs Egyptian cat")
    assert len({stem("c" * 200 + end) for end in "ab"}) == 2


ALIKE = [
    ["a/cat.png", "b/cat.png", "c/a/cat.png"],
    ["cat.jpg", "cat.png", "CAT.png", "Cat.JPG"],
    ["a/x.png", "a/X.PNG", "A/x.png"],
    ["one two.png", "one_two.png", "one?two.png"],
    ["é.png", unicodedata.normalize("NFD", "é.png"), "É.png"],
    ["ﬁ.png", "fi.png", "straße.png", "STRASSE.png"],
    ["a/b.png", "c/b.png", "a_b.png.png", "c_b.png.jpg"],
    ["-", "stdin.png", "x/stdin.png"],
    ["...png", "__.png", "?.png", "image.png"],
    ["x" * 130 + "1.png", "x" * 130 + "2.png", "X" * 130 + "1.png"],
    [f"{'d' * 200}/a.png", f"{'d' * 199}e/a.png"],
    ["a__b.png", "a_b.png", "_a_b_.png"],
    ["\udcff.png", "\udcfe.png"],
]


@pytest.mark.parametrize("sources", ALIKE)
@pytest.mark.parametrize("models", [["m"], ["Org/net", "org_net", "org net", "n" * 90 + "1", "n" * 90 + "2"]])
def test_no_two_results_share_a_file_also_where_case_does_not_count(sources: list[str], models: list[str]) -> None:
    explainers = ["gradcam", "gradcam_sets", "GradCAM"]
    names = OutputNames(models, explainers, sources)
    stems = [names.stem(model, explainer, source) for source in sources for model in models for explainer in explainers]
    files = [f"{stem}{suffix}" for stem in stems for suffix in (".png", "__sets.png", ".json", ".safetensors")]
    assert len({unicodedata.normalize("NFKC", file).casefold() for file in files}) == len(files)
    assert all(len(file.encode()) <= 255 and "/" not in file for file in files)


def test_names_do_not_depend_on_the_order() -> None:
    for sources in ALIKE:
        forth, back = OutputNames(["m"], ["e"], sources), OutputNames(["m"], ["e"], sources[::-1])
        assert [forth.stem("m", "e", one) for one in sources] == [back.stem("m", "e", one) for one in sources]


def test_models_with_alike_names_get_different_files() -> None:
    assert file_names(["a/b", "c"]) == {"a/b": "a_b", "c": "c"}
    assert len({name.casefold() for name in file_names(["a/b", "a_b", "A B"]).values()}) == 3


def test_a_long_name_is_shortened_with_a_hash() -> None:
    short = image_stem("l" * 230 + ".png")
    assert len(short) == IMAGE
    assert short.startswith("l" * 80)
    assert short != image_stem("l" * 231 + ".png")
    assert len(safe_name("ü" * 200, 58).encode()) <= 58


@pytest.mark.parametrize(
    "name", ["photos/val/class_{0}/ILSVRC2012_val_{1:08d}.JPEG", "photos/{1}/image.png"], ids=["own", "shared"]
)
def test_fifty_thousand_images_are_named_in_seconds(name: str) -> None:
    sources = [name.format(number % 1000, number) for number in range(50_000)]
    started = time.process_time()
    names = OutputNames(["efficientnet_lite0"], ["gradcam"], sources)
    assert len({names.stem("efficientnet_lite0", "gradcam", source) for source in sources}) == 50_000
    assert time.process_time() - started < 20  # it took six hours
