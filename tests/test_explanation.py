"""Results: saved whole or not at all, never as pickle, and read back as they were."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xaihub import ClassScore, Explanation, Geometry, GlobalExplanation, PixelSet, load_image
from xaihub.errors import OutputError
from xaihub.files import write_file

GEOMETRY = Geometry(original=(12, 9), scaled=(8, 6), offset=(1, 0), crop=(6, 6))
METADATA = {
    "model": "toy",
    "explainer": "rise",
    "parameters": {"masks": 10, "keep": 0.5, "baseline": None},
    "seed": 3,
    "warnings": ["größer als gedacht", "猫"],
}


@pytest.fixture
def explanation() -> Explanation:
    return Explanation(
        values=torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0)),
        target=ClassScore(index=281, name="tabby, 虎猫 🐈", logit=3.5, probability=0.7512),
        against=ClassScore(index=285, name="Ägyptische Mau", logit=1.5, probability=0.1),
        predicted=ClassScore(index=281, name="tabby, 虎猫 🐈", logit=3.5, probability=0.7512),
        metadata=METADATA,
        geometry=GEOMETRY,
    )


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_was_lost_of_an_image_is_among_the_warnings(explanation: Explanation) -> None:
    image = replace(load_image(np.zeros((9, 90, 3), np.uint8)), notes=("clipped",))
    thin = Geometry(original=(90, 9), scaled=(90, 9), offset=(40, 0), crop=(9, 9))
    made = explanation.with_image(image, thin)
    shown = "the model's crop shows only 10 % of the image (90 x 9 pixels); crop the image first"
    assert made.warnings == [*explanation.warnings, "clipped", shown]
    assert made.with_image(image, thin).warnings == made.warnings


def test_in_a_prompt_everything_with_arrays_is_one_line(explanation: Explanation) -> None:
    one = PixelSet(mask=torch.eye(6) > 0, score=0.7, whole=0.9)
    shown = repr(replace(explanation, sets=(one,)))
    assert shown == (
        "<Explanation 'tabby, 虎猫 🐈 75.1% rather than Ägyptische Mau 10.0%', rise of toy, values (3, 6, 6),"
        " sufficient set: area 17 %, keeps 70 % of 90 %>"
    )
    ranking = GlobalExplanation(runs=torch.rand(2, 40), names=tuple("ab" * 20), feature="channel", method="scores")
    image = load_image(np.zeros((9, 90, 3), np.uint8))
    for thing in (one, image, ranking, replace(explanation, metadata={})):
        assert len(repr(thing)) < 150
        assert "\n" not in repr(thing)


class TestSaving:
    @pytest.mark.parametrize("name", ["cat", "cat.safetensors", "a/deep/cat", "cat.v2", "猫"])
    def test_a_round_trip_changes_nothing(self, explanation: Explanation, tmp_path: Path, name: str) -> None:
        written = explanation.save(tmp_path / name)
        assert written.suffix == ".safetensors"
        assert written.is_file()
        for path in (tmp_path / name, written, written.with_suffix(".json")):
            loaded = Explanation.load(path)
            assert torch.equal(loaded.values, explanation.values)
            assert replace(loaded, values=explanation.values) == explanation
            assert torch.equal(
                loaded.heatmap(original=True).nan_to_num(-1), explanation.heatmap(original=True).nan_to_num(-1)
            )

    def test_a_result_without_contrast_and_geometry_comes_back_so(
        self, explanation: Explanation, tmp_path: Path
    ) -> None:
        bare = replace(explanation, against=None, geometry=None)
        bare.save(tmp_path / "x")
        loaded = Explanation.load(tmp_path / "x")
        assert loaded.against is None
        assert loaded.geometry is None

    def test_two_files_are_written_and_neither_is_a_pickle(self, explanation: Explanation, tmp_path: Path) -> None:
        explanation.save(tmp_path / "x")
        assert files(tmp_path) == ["x.json", "x.safetensors"]
        for name in files(tmp_path):
            with pytest.raises(Exception, match=r".*"):
                pickle.loads((tmp_path / name).read_bytes())

    def test_saving_again_replaces(self, explanation: Explanation, tmp_path: Path) -> None:
        explanation.save(tmp_path / "x")
        replace(explanation, values=torch.zeros(1, 2, 2)).save(tmp_path / "x")
        assert Explanation.load(tmp_path / "x").values.shape == (1, 2, 2)
        assert files(tmp_path) == ["x.json", "x.safetensors"]

    def test_the_files_can_be_read_by_others_as_the_umask_says(self, explanation: Explanation, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            written = explanation.save(tmp_path / "x")
        finally:
            os.umask(before)
        assert written.stat().st_mode & 0o777 == 0o640

    def test_slices_and_transposed_values_can_be_saved(self, explanation: Explanation, tmp_path: Path) -> None:
        odd = explanation.values.transpose(1, 2)[:1]
        replace(explanation, values=odd).save(tmp_path / "x")
        assert torch.equal(Explanation.load(tmp_path / "x").values, odd)

    def test_further_tensors_come_back_as_they_were(self, explanation: Explanation, tmp_path: Path) -> None:
        extras = {
            "mask": torch.rand(1, 6, 6) < 0.5,
            "values": torch.arange(3),
            "猫 2": torch.randn(2, 6, 6).transpose(1, 2),
        }
        replace(explanation, extras=extras).save(tmp_path / "x")
        loaded = Explanation.load(tmp_path / "x")
        assert sorted(loaded.extras) == sorted(extras)
        assert all(torch.equal(loaded.extras[name], tensor) for name, tensor in extras.items())
        assert [loaded.extras[name].dtype for name in extras] == [torch.bool, torch.int64, torch.float32]
        assert torch.equal(loaded.values, explanation.values)
        assert files(tmp_path) == ["x.json", "x.safetensors"]

    def test_sets_of_pixels_come_back_as_they_were(self, explanation: Explanation, tmp_path: Path) -> None:
        masks = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0)) < 0.3
        full = PixelSet(mask=masks[0], role="contrastive", holds=False, score=0.25, whole=0.75, runner_up=0.2,
                        baseline="blur", details={"k": [1]})  # fmt: skip
        whole = replace(explanation, sets=(full, PixelSet(mask=masks[1])))
        whole.save(tmp_path / "x")
        loaded = Explanation.load(tmp_path / "x")
        assert [torch.equal(one.mask, mask) for one, mask in zip(loaded.sets, masks, strict=True)] == [True, True]
        assert [one.to_dict() for one in loaded.sets] == [one.to_dict() for one in whole.sets]
        assert loaded.to_dict()["sets"][0] == {
            "role": "contrastive",
            "area": float(masks[0].double().mean()),
            "holds": False,
            "score": 0.25,
            "whole": 0.75,
            "runner_up": 0.2,
            "baseline": "blur",
            "details": {"k": [1]},
        }
        assert explanation.to_dict()["sets"] == []

    def test_a_set_says_what_it_keeps_of_what_and_who_comes_next(self) -> None:
        mask = torch.zeros(10, 10, dtype=torch.bool)
        mask[:4] = True
        one = PixelSet(mask=mask, score=0.32, whole=0.94, runner_up=0.03)
        assert one.claim == "area 40 %, keeps 32 % of 94 %, runner-up 3 %"
        assert replace(one, score=0.0081, whole=1.0, runner_up=None, holds=False).claim == (
            "area 40 %, keeps 0.8 % of 100 %, not sufficient"
        )
        assert PixelSet(mask=mask).claim == "area 40 %"

    @pytest.mark.parametrize("sets", [[], [{}, {}], [{"role": "odd", "x": 1}], 7, None], ids=str)
    def test_a_record_whose_sets_differ_from_the_tensors_is_damaged(
        self, explanation: Explanation, tmp_path: Path, sets: Any
    ) -> None:
        saved = replace(explanation, sets=(PixelSet(mask=torch.ones(6, 6, dtype=torch.bool)),)).save(tmp_path / "x")
        record = json.loads(saved.with_suffix(".json").read_text())
        saved.with_suffix(".json").write_text(json.dumps({**record, "sets": sets}))
        with pytest.raises(OutputError, match="damaged"):
            Explanation.load(saved)

    def test_a_source_whose_name_is_no_unicode_can_be_saved(self, explanation: Explanation, tmp_path: Path) -> None:
        image = replace(load_image(np.zeros((9, 12, 3), np.uint8)), source=os.fsdecode(b"caf\xe9.jpg"))
        explanation.with_image(image, GEOMETRY).save(tmp_path / "x")
        assert os.fsencode(Explanation.load(tmp_path / "x").metadata["image"]["source"]) == b"caf\xe9.jpg"


class TestTheRecord:
    def test_it_is_clean_json_whatever_a_method_puts_in(self, explanation: Explanation, tmp_path: Path) -> None:
        details = {
            "nan": float("nan"),
            "inf": [float("inf"), -1.5],
            "numpy": np.float32(0.5),
            "array": np.arange(3),
            "tensor": torch.tensor(2),
            "gap": torch.tensor([0.5, float("nan")]),
            "path": tmp_path,
            "tuple": (1, True, None),
            3: {"x"},
        }
        replace(explanation, metadata={**METADATA, "details": details}).save(tmp_path / "x")

        def refuse(name: str) -> Any:
            raise AssertionError(f"{name} is not JSON")

        record = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"), parse_constant=refuse)
        assert record["details"] == {
            "nan": None,
            "inf": [None, -1.5],
            "numpy": 0.5,
            "array": [0, 1, 2],
            "tensor": 2,
            "gap": [0.5, None],
            "path": str(tmp_path),
            "tuple": [1, True, None],
            "3": ["x"],
        }

    def test_it_can_be_read_by_people(self, explanation: Explanation, tmp_path: Path) -> None:
        explanation.save(tmp_path / "x")
        text = (tmp_path / "x.json").read_text(encoding="utf-8")
        assert '  "seed": 3' in text
        assert "tabby, 虎猫 🐈" in text

    def test_it_says_which_image_was_explained(self, explanation: Explanation) -> None:
        image = load_image(np.zeros((9, 12, 3), np.uint8))
        found = explanation.with_image(image, GEOMETRY)
        assert found.image is image
        assert found.metadata["image"] == {"source": "", "sha256": image.sha256}

    def test_short_ways_to_what_is_asked_most(self, explanation: Explanation) -> None:
        assert (explanation.model, explanation.explainer) == ("toy", "rise")
        assert explanation.warnings == METADATA["warnings"]
        assert str(explanation.target) == "tabby, 虎猫 🐈 75.1%"


class TestHeatmaps:
    def test_channels_are_summed(self, explanation: Explanation) -> None:
        assert torch.equal(explanation.heatmap(), explanation.values.sum(0))
        assert explanation.heatmap().shape == (6, 6)

    def test_the_originals_geometry_has_its_size_and_nan_outside_the_crop(self, explanation: Explanation) -> None:
        found = explanation.heatmap(original=True)
        assert found.shape == (9, 12)
        assert found[:, 0].isnan().all()
        assert found[:, -1].isnan().all()
        assert not found[:, 2:10].isnan().any()

    def test_an_unknown_geometry_is_refused(self, explanation: Explanation) -> None:
        with pytest.raises(OutputError, match=r"geometry is unknown \(explain an image"):
            replace(explanation, geometry=None).heatmap(original=True)


class TestReadingBadFiles:
    def refusal(self, path: Path) -> str:
        with pytest.raises(OutputError) as caught:
            Explanation.load(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_a_missing_file_is_named(self, explanation: Explanation, tmp_path: Path) -> None:
        assert self.refusal(tmp_path / "x") == f"there is no file '{tmp_path / 'x.json'}'"
        explanation.save(tmp_path / "x").unlink()
        assert self.refusal(tmp_path / "x") == f"there is no file '{tmp_path / 'x.safetensors'}'"

    @pytest.mark.parametrize(
        "data",
        [b"", b"{", b"[]", b"7", b"null", b"{}", b'{"format": 1}', b"\xff\xfe", b"[" * 100_000,
         b'{"format": 1, "target": {"x": 1}, "against": null, "predicted": {}, "geometry": null}'],
        ids=lambda data: repr(data[:12]),
    )  # fmt: skip
    def test_a_damaged_record_is_one_line(self, explanation: Explanation, tmp_path: Path, data: bytes) -> None:
        explanation.save(tmp_path / "x")
        (tmp_path / "x.json").write_bytes(data)
        assert "is damaged or not a saved explanation" in self.refusal(tmp_path / "x")

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
    def test_truncated_values_are_one_line(self, explanation: Explanation, tmp_path: Path, share: float) -> None:
        file = explanation.save(tmp_path / "x")
        data = file.read_bytes()
        file.write_bytes(data[: int(len(data) * share)])
        assert "is damaged or not a saved explanation" in self.refusal(file)

    def test_values_of_another_form_are_one_line(self, explanation: Explanation, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        explanation.save(tmp_path / "x")
        for tensors in ({"other": torch.zeros(1, 2, 2)}, {"values": torch.zeros(2, 2)}):
            save_file(tensors, tmp_path / "x.safetensors")
            assert "is damaged or not a saved explanation" in self.refusal(tmp_path / "x")

    def test_another_format_says_so(self, explanation: Explanation, tmp_path: Path) -> None:
        explanation.save(tmp_path / "x")
        record = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
        (tmp_path / "x.json").write_text(json.dumps({**record, "format": 99}), encoding="utf-8")
        assert "written by another version" in self.refusal(tmp_path / "x")

    def test_a_folder_in_the_place_of_a_file_is_one_line(self, explanation: Explanation, tmp_path: Path) -> None:
        explanation.save(tmp_path / "x")
        (tmp_path / "x.json").unlink()
        (tmp_path / "x.json").mkdir()
        assert "cannot read" in self.refusal(tmp_path / "x")


class TestInterruptedWrites:
    @pytest.mark.parametrize("step", ["replace", "write_bytes", "write_text", "chmod"])
    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
    def test_nothing_is_left_behind(
        self,
        explanation: Explanation,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        step: str,
        error: BaseException,
    ) -> None:
        def interrupted(*_args: Any, **_options: Any) -> Any:
            raise error

        monkeypatch.setattr(Path, step, interrupted)
        with pytest.raises((OutputError, KeyboardInterrupt)):
            explanation.save(tmp_path / "x")
        assert files(tmp_path) == []

    def test_an_older_result_survives(
        self, explanation: Explanation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        explanation.save(tmp_path / "x")

        def full(*_args: Any) -> Any:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(OutputError, match="cannot write .*x.safetensors': No space left on device"):
            replace(explanation, values=torch.zeros(1, 2, 2)).save(tmp_path / "x")
        assert torch.equal(Explanation.load(tmp_path / "x").values, explanation.values)
        assert files(tmp_path) == ["x.json", "x.safetensors"]

    def test_a_writer_that_fails_half_way_leaves_nothing(self, tmp_path: Path) -> None:
        def half(file: Path) -> None:
            file.write_text("half", encoding="utf-8")
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            write_file(tmp_path / "x.png", half)
        assert files(tmp_path) == []

    def test_a_folder_that_cannot_be_written_is_one_line(self, explanation: Explanation, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x", encoding="utf-8")
        for folder in (tmp_path / "file", tmp_path / "file" / "deeper", Path("/proc/nowhere")):
            with pytest.raises(OutputError, match="cannot write"):
                explanation.save(folder / "x")
        assert files(tmp_path) == ["file"]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_without_permission_is_one_line(self, explanation: Explanation, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(OutputError, match="cannot write .*Permission denied"):
            explanation.save(tmp_path / "x")

    def test_a_file_name_that_is_too_long_is_one_line(self, explanation: Explanation, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="File name too long"):
            explanation.save(tmp_path / ("x" * 300))
        assert files(tmp_path) == []
