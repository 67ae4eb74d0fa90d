"""The store of a run: whole records or none, once each, readable while written."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from xaihub import ClassScore, Explanation
from xaihub.errors import OutputError
from xaihub.evaluation.config import Config
from xaihub.evaluation.merge import absorb
from xaihub.evaluation.results import Key, Score, ScoreKey
from xaihub.evaluation.store import RunStore

KEY = Key(
    image="ab" * 32, model="toy", weights="w", preprocessing={"size": 8}, explainer="toy_gradient",
    parameters={"steps": 3}, target="None", seed=0, code="1",
)  # fmt: skip
SCORE = ClassScore(index=1, name="cat", logit=2.0, probability=0.7)


def explanation(fill: float = 1.0) -> Explanation:
    metadata = {
        "explainer": "toy_gradient",
        "model": "toy",
        "forward_passes": 2.0,
        "backward_passes": 1.0,
        "seconds": 0.5,
    }
    return Explanation(values=torch.full((1, 4, 4), fill), target=SCORE, predicted=SCORE, metadata=metadata)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore(tmp_path / "run", create=True) as opened:
        yield opened


def test_an_explanation_comes_back_as_it_went_in(store: RunStore) -> None:
    store.add_explanation(KEY, "cat.jpg", explanation())
    back = store.explanation(KEY)
    assert back is not None
    assert torch.equal(back.values, explanation().values)
    assert back.to_dict() == explanation().to_dict()


def test_further_tensors_of_an_explanation_come_back_as_well(store: RunStore) -> None:
    mask = torch.arange(16).reshape(4, 4) > 7
    store.add_explanation(KEY, "cat.jpg", replace(explanation(), extras={"sufficient": mask}))
    back = store.explanation(KEY)
    assert back is not None
    assert back.extras.keys() == {"sufficient"}
    assert torch.equal(back.extras["sufficient"], mask)
    assert back.extras["sufficient"].dtype == torch.bool


@pytest.mark.parametrize(
    "change",
    [
        {"image": "cd" * 32},
        {"weights": "v"},
        {"structure": "s"},
        {"preprocessing": {"size": 9}},
        {"explainer": "other"},
        {"parameters": {"steps": 4}},
        {"target": "281"},
        {"seed": 1},
        {"code": "2"},
    ],
)
def test_whatever_values_depend_on_is_part_of_the_key(change: dict[str, object]) -> None:
    assert replace(KEY, **change).digest != KEY.digest  # type: ignore[arg-type]


def test_a_models_name_is_not_part_of_the_key() -> None:
    assert replace(KEY, model="alias").digest == KEY.digest


def test_a_score_is_missing_until_it_is_there_and_again_if_it_failed(store: RunStore) -> None:
    wanted = [ScoreKey("insertion", "{}"), ScoreKey("deletion", "{}")]
    store.add_explanation(KEY, "cat.jpg", explanation())
    assert store.missing_scores(KEY, wanted, retry=True) == wanted
    store.add_score(KEY, Score(ScoreKey("insertion", "{}"), value=0.5))
    store.add_score(KEY, Score(ScoreKey("deletion", "{}"), error="refused"))
    assert store.missing_scores(KEY, wanted, retry=True) == [("deletion", "{}", "{}")]
    assert store.missing_scores(KEY, wanted, retry=False) == []


def test_a_map_whose_file_is_lost_counts_as_missing(store: RunStore) -> None:
    store.add_explanation(KEY, "cat.jpg", explanation())
    next(store.folder.glob("maps/*/*.safetensors")).unlink()
    assert store.explanation(KEY) is None


def test_a_score_on_another_basis_is_missing_and_replaces_what_was_shown(store: RunStore) -> None:
    store.add_explanation(KEY, "cat.jpg", explanation())
    store.add_score(KEY, Score(ScoreKey("mass", "{}", '{"truth": "a"}'), value=0.1))
    other = ScoreKey("mass", "{}", '{"truth": "b"}')
    assert store.missing_scores(KEY, [other], retry=False) == [other]
    store.add_score(KEY, Score(other, value=0.2))
    assert [row.value for row in store.rows()] == [0.2]


def test_only_scores_of_the_wanted_basis_are_shown_and_going_back_loses_nothing(store: RunStore) -> None:
    store.add_explanation(KEY, "cat.jpg", explanation())
    for letter, value in (("a", 0.1), ("b", 0.2)):
        store.add_score(KEY, Score(ScoreKey("mass", "{}", f'{{"truth": "{letter}"}}'), value=value))
    for letter, shown in (("a", [0.1]), ("b", [0.2]), ("c", []), ("a", [0.1])):
        store.show_scores(["cat.jpg"], [], [("cat.jpg", ScoreKey("mass", "{}", f'{{"truth": "{letter}"}}'))])
        assert [row.value for row in store.rows()] == shown


@pytest.mark.parametrize(
    ("basis", "shown"), [("{}", 1), ('{"code": "1"}', 1), ('{"pool": "x"}', 0), ('{"truth": null}', 0)]
)
def test_of_an_image_that_left_the_plan_only_what_depends_on_nothing_else_is_shown(
    store: RunStore, basis: str, shown: int
) -> None:
    store.add_explanation(KEY, "cat.jpg", explanation())
    store.add_score(KEY, Score(ScoreKey("mass", "{}", basis), value=0.5))
    store.show_scores(["dog.jpg"], [])
    assert len(store.rows()) == shown


def test_of_each_image_and_method_only_the_wanted_explanation_is_shown(store: RunStore) -> None:
    keys = [replace(KEY, seed=seed) for seed in (0, 1)]
    for key in keys:
        store.add_explanation(key, "cat.jpg", explanation())
        store.add_score(key, Score(ScoreKey("mass", "{}"), value=float(key.seed)))
    for seed in (1, 0):
        store.show_explanations("toy", [(0, keys[seed].digest, "new/cat.jpg", "toy_gradient", '{"steps": 3}')])
        store.show_explanations("toy", [(0, keys[seed].digest, "cat.jpg", "toy_gradient", '{"steps": 3}')])
        assert [(row.image, row.value) for row in store.rows()] == [("cat.jpg", float(seed))]


def test_a_run_of_an_older_form_is_refused_with_one_line(store: RunStore) -> None:
    store._db.execute("UPDATE meta SET value = '1' WHERE name = 'format'")
    with pytest.raises(OutputError, match="another version of xaihub") as caught:
        RunStore(store.folder)
    assert "new run" in str(caught.value)


def test_writing_a_score_twice_keeps_one_row(store: RunStore) -> None:
    store.add_explanation(KEY, "cat.jpg", explanation())
    for value in (0.1, 0.2):
        store.add_score(KEY, Score(ScoreKey("insertion", "{}"), value=value))
    (row,) = store.rows()
    assert row.value == 0.2


def test_readers_see_whole_rows_while_one_process_writes(store: RunStore) -> None:
    store.add_explanation(KEY, "cat.jpg", explanation())
    with store.writing(), RunStore(store.folder) as reader:
        store.add_score(KEY, Score(ScoreKey("insertion", "{}"), value=0.5))
        assert [row.value for row in reader.rows()] == [0.5]


def test_two_writers_are_refused(store: RunStore) -> None:
    with (
        store.writing(),
        RunStore(store.folder) as other,
        pytest.raises(OutputError, match="another process"),
        other.writing(),
    ):
        pass


def test_a_full_database_is_one_line_and_loses_nothing(store: RunStore) -> None:
    store.add_explanation(KEY, "cat.jpg", explanation())
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OutputError, match="full"):  # noqa: PT012 - which write fills it is not ours to know
        for number in range(10_000):
            store.add_score(KEY, Score(ScoreKey(f"metric{number}", "{}"), value=1.0, details={"much": "x" * 500}))
    kept = len(store.rows())
    store._db.execute(f"PRAGMA max_page_count = {10 * pages}")
    store.add_score(KEY, Score(ScoreKey("afterwards", "{}"), value=2.0))
    assert len(store.rows()) == kept + 1


def test_a_disk_that_fills_while_a_map_is_written_leaves_no_record_and_no_file(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OutputError, match="No space left"):
            store.add_explanation(KEY, "cat.jpg", explanation())
    assert not store.has_explanation(KEY, retry=False)
    assert [path for path in (store.folder / "maps").rglob("*") if path.is_file()] == []


def test_leftovers_of_a_killed_writer_are_cleared(store: RunStore) -> None:
    leftover = store.folder / "maps" / "ab" / ".half-written.xyz"
    leftover.parent.mkdir()
    leftover.write_bytes(b"half")
    with store.writing():
        assert not leftover.exists()


def test_opening_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no run"):
        RunStore(tmp_path / "nothing")
    (tmp_path / "run.sqlite").write_bytes(b"not a database, but long enough to be looked at" * 20)
    with pytest.raises(OutputError, match="damaged"):
        RunStore(tmp_path)


def test_creating_over_a_run_is_refused_with_the_way_on(store: RunStore) -> None:
    store.set_config(Config(images=["cat.jpg"]))
    with pytest.raises(OutputError, match="--resume"):
        RunStore(store.folder, create=True)


def test_a_run_that_was_killed_while_it_was_made_can_be_made_again(tmp_path: Path) -> None:
    (tmp_path / "run.sqlite").touch()
    with pytest.raises(OutputError, match="before it began"):
        RunStore(tmp_path)
    with RunStore(tmp_path, create=True) as store:
        assert store.rows() == []


def test_merging_keeps_each_record_once_and_results_over_failures(tmp_path: Path) -> None:
    other_key = replace(KEY, parameters={"steps": 4})
    with RunStore(tmp_path / "a", create=True) as a, RunStore(tmp_path / "b", create=True) as b:
        a.add_explanation(KEY, "cat.jpg", explanation())
        a.add_score(KEY, Score(ScoreKey("insertion", "{}"), error="out of luck"))
        a.add_score(KEY, Score(ScoreKey("deletion", "{}"), value=0.25))
        b.add_explanation(KEY, "cat.jpg", explanation())
        b.add_score(KEY, Score(ScoreKey("insertion", "{}"), value=0.5))
        b.add_score(KEY, Score(ScoreKey("deletion", "{}"), error="out of luck"))
        b.add_explanation(other_key, "cat.jpg", explanation(2.0))
        b.add_score(other_key, Score(ScoreKey("insertion", "{}"), value=0.75))
        assert absorb(a, b) == 0
        assert sorted((row.metric, row.value) for row in a.rows()) == [
            ("deletion", 0.25),
            ("insertion", 0.5),
            ("insertion", 0.75),
        ]
        merged = a.explanation(other_key)
    assert merged is not None
    assert float(merged.values.mean()) == 2.0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_what_merged_runs_disagree_on_is_set_aside_in_whatever_order_they_come(
    tmp_path: Path, order: tuple[int, ...]
) -> None:
    runs = [RunStore(tmp_path / str(number), create=True) for number in range(3)]
    for number, run in enumerate(runs):
        run.set_images([("cat.jpg", 0, "ab" * 32)])
        run.add_explanation(KEY, "cat.jpg", explanation())
        run.add_score(KEY, Score(ScoreKey("mass", "{}", f'{{"truth": "{number // 2}"}}'), value=number / 4))
        run.add_score(KEY, Score(ScoreKey("grid", "{}", '{"pool": "same"}'), value=0.5))
        run.add_score(KEY, Score(ScoreKey("insertion", "{}"), value=0.75))
    with RunStore(tmp_path / "merged", create=True) as merged:
        aside = absorb(merged, *(runs[number] for number in order))
        assert [(row.metric, row.value) for row in merged.rows()] == [("grid", 0.5), ("insertion", 0.75)]
        assert aside == 2
        merged.show_scores(["cat.jpg"], [], [("cat.jpg", ScoreKey("mass", "{}", '{"truth": "1"}'))])
        assert ("mass", 0.5) in [(row.metric, row.value) for row in merged.rows()]
    for run in runs:
        run.close()


def test_merged_runs_of_different_photos_set_aside_the_scores_that_look_at_other_photos(tmp_path: Path) -> None:
    with RunStore(tmp_path / "a", create=True) as a, RunStore(tmp_path / "b", create=True) as b:
        for run, image in ((a, "ab" * 32), (b, "cd" * 32)):
            key = replace(KEY, image=image)
            run.set_images([(image, 0, image)])
            run.add_explanation(key, image, explanation())
            run.add_score(key, Score(ScoreKey("grid", "{}", f'{{"pool": "{image}"}}'), value=0.5))
            run.add_score(key, Score(ScoreKey("insertion", "{}"), value=0.75))
        assert absorb(a, b) == 2
        assert [row.metric for row in a.rows()] == ["insertion", "insertion"]


def test_runs_that_explained_one_image_with_different_seeds_are_not_mixed(tmp_path: Path) -> None:
    with RunStore(tmp_path / "a", create=True) as a, RunStore(tmp_path / "b", create=True) as b:
        for run, seed in ((a, 0), (b, 1)):
            key = replace(KEY, seed=seed)
            run.add_explanation(key, "cat.jpg", explanation())
            run.add_score(key, Score(ScoreKey("insertion", "{}"), value=0.75))
        assert absorb(a, b) == 2
        assert a.rows() == []


def test_the_frame_has_one_row_a_score(store: RunStore) -> None:
    pytest.importorskip("pandas")
    store.add_explanation(KEY, "cat.jpg", explanation())
    store.add_score(KEY, Score(ScoreKey("insertion", "{}"), value=0.5))
    frame = store.frame()
    assert list(frame["value"]) == [0.5]
    assert list(frame["explainer"]) == ["toy_gradient"]


def test_every_commit_survives_without_closing(store: RunStore) -> None:
    store.add_explanation(KEY, "cat.jpg", explanation())
    store.add_score(KEY, Score(ScoreKey("insertion", "{}"), value=0.5))
    with closing(sqlite3.connect(store.folder / "run.sqlite")) as second:
        assert second.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert second.execute("SELECT value FROM scores").fetchall() == [(0.5,)]


def test_a_run_in_a_folder_that_may_only_be_read_is_read_as_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunStore(tmp_path / "run", create=True) as opened:
        opened.add_explanation(KEY, "cat.jpg", explanation())
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)
    with RunStore(tmp_path / "run") as read:
        assert read.explanation(KEY) is not None
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before  # no journal beside it
        with pytest.raises(OutputError, match="readonly"):
            read.set_config(Config(images=["cat.jpg"]))
    (tmp_path / "run" / "run.sqlite-wal").write_bytes(b"records")
    with pytest.raises(OutputError, match="unmerged write-ahead log"):
        RunStore(tmp_path / "run")
