"""The fastest batch size is found with passes that are made anyway, and remembered."""

from __future__ import annotations

import pytest
import torch

from tests.test_backends import model, passes
from xaihub.masking import batch_rows
from xaihub.models import cache
from xaihub.models.tuning import Choice, Tuning


@pytest.fixture(autouse=True)
def _measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XAIHUB_TUNING", "1")


def search(seconds: dict[tuple[int, int], float], *, threads: tuple[int, ...] = (1,), most: int = 64) -> Tuning:
    """Run a search whose passes take these seconds per row; the first of each size takes longer."""
    tuning = Tuning("key", about="small", first=4, sizes=range(1, most + 1), threads=threads)
    seen: set[tuple[int, int]] = set()
    for _ in range(100):
        if tuning.choice is not None:
            break
        rows, per_row = tuning.now[0], seconds[tuning.now]
        tuning.note(rows, rows * per_row * (1 if tuning.now in seen else 10))
        seen.add(tuning.now)
    return tuning


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 8, 2: 5, 4: 6, 8: 7}, 2),  # fewer rows
        ({2: 5, 4: 4, 8: 3, 16: 2, 32: 2}, 16),  # more, as long as it pays
        ({2: 5, 4: 4, 8: 5}, 4),
        ({2: 5, 4: 4, 8: 3, 16: 2, 32: 1.5, 64: 1}, 64),  # as many as may be tried
    ],
)
def test_the_fastest_size_is_found(seconds: dict[int, float], best: int) -> None:
    tuning = search({(rows, 1): float(value) for rows, value in seconds.items()})

    assert tuning.choice == Choice(best, 1, pytest.approx(1 / seconds[best]))


def test_one_thread_is_used_where_several_are_slower() -> None:
    times = {(4, 2): 10.0, (4, 1): 1.0, (8, 1): 1.0, (2, 1): 1.0}

    assert search(times, threads=(2, 1)).choice == Choice(4, 1, 1.0)
    cache.clear()
    times = {(4, 2): 1.0, (4, 1): 1.8, (8, 2): 1.0, (2, 2): 1.0}
    assert search(times, threads=(2, 1)).choice == Choice(4, 2, 1.0)


def test_on_one_thread_other_processes_do_not_disturb_the_search() -> None:
    tuning = Tuning("key", about="small", first=4, sizes=range(1, 65), threads=(1,))
    spent = {4: 5.0, 8: 3.0, 16: 4.0}
    while tuning.choice is None:
        rows = tuning.now[0]
        tuning.note(rows, rows * 100.0 / rows, rows * spent[rows])

    assert tuning.choice.rows == 8


def test_a_later_process_recalls_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    search({(2, 1): 1.0, (4, 1): 3.0, (8, 1): 4.0, (1, 1): 2.0})

    assert Tuning("key", about="", first=4, sizes=range(1, 65), threads=(1,)).now == (2, 1)
    assert Tuning("other", about="", first=4, sizes=range(1, 65), threads=(1,)).choice is None
    assert Tuning("key", about="", first=1, sizes=range(1, 3), threads=(1,)).choice == Choice(2, 1, 1.0)
    assert Tuning("key", about="", first=4, sizes=range(1, 2), threads=(1,)).now == (1, 1)  # the other is too large
    monkeypatch.setenv("XAIHUB_TUNING", "0")
    assert Tuning("key", about="", first=4, sizes=range(1, 65), threads=(1,)).now == (4, 1)


def test_too_little_memory_ends_the_search() -> None:
    tuning = Tuning("key", about="", first=4, sizes=range(1, 65), threads=(1,))
    tuning.limit(2)

    assert tuning.choice == Choice(2, 1)
    assert not cache.entries()


def test_the_search_runs_on_the_passes_of_an_explanation() -> None:
    subject, _ = model(backend="eager")
    subject.runtime.batch_size = None
    subject.runtime.memory_budget = 8 * subject.row_bytes
    found = passes(subject, 200)
    fixed, _ = model(backend="eager")

    assert torch.allclose(found, passes(fixed, 200), atol=1e-5)
    assert subject.executor.record(subject)["batch_size"] == batch_rows(subject) <= 8
    assert [entry.kind for entry in cache.entries()] == ["batches"]


def test_old_entries_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        cache.put("compiled", str(number), bytes(1000), about="model")
    cache.get("compiled", "0")
    assert len(cache.entries()) == 4
    monkeypatch.setattr(cache, "LIMIT", 2500)
    cache.put("batches", "9", b"", about="model")

    assert len(cache.entries()) == 3
    assert cache.get("compiled", "0") == bytes(1000)  # used last
    assert len(cache.clear("compiled")) == 2
    assert [entry.kind for entry in cache.entries()] == ["batches"]
