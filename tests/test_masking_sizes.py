"""The search for the smallest of nested sets that passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from xaihub.masking import SizeSearch


def found(passes: Callable[[int], bool], total: int, **options: float) -> tuple[int, list[list[int]]]:
    search, rounds = SizeSearch(total, **options), []
    while search.sizes:
        rounds.append(search.sizes)
        search.narrow(search.sizes, [passes(size) for size in search.sizes])
    return search.smallest, rounds


@pytest.mark.parametrize("total", [1, 2, 7, 100, 1024, 50176])
@pytest.mark.parametrize("fraction", [0.001, 0.3, 0.77, 1.0])
def test_the_smallest_size_is_found_where_more_is_better(total: int, fraction: float) -> None:
    needed = max(1, round(fraction * total))
    smallest, rounds = found(lambda size: size >= needed, total)
    assert smallest == needed
    assert len(rounds) <= 8
    assert all(sizes == sorted(set(sizes)) and len(sizes) <= 16 for sizes in rounds)


@pytest.mark.parametrize("resolution", [1, 10, 500])
def test_it_ends_at_the_resolution(resolution: int) -> None:
    smallest, rounds = found(lambda size: size >= 20_000, 50176, resolution=resolution)
    assert 20_000 <= smallest < 20_000 + resolution
    assert len(rounds) <= {1: 8, 10: 6, 500: 3}[resolution]


def test_the_empty_set_is_tested_only_if_it_may_pass() -> None:
    assert found(lambda size: True, 1024, empty=True)[0] == 0
    assert found(lambda size: True, 1024)[0] == 1
    assert found(lambda size: size >= 3, 1024, empty=True)[0] == 3


def test_without_a_passing_size_the_whole_is_returned() -> None:
    assert found(lambda size: False, 1024)[0] == 1024
    assert found(lambda size: False, 0)[0] == 0


def test_some_of_the_sizes_may_be_left_untested() -> None:
    search = SizeSearch(1024)
    search.narrow(search.sizes[::4], [size >= 300 for size in search.sizes[::4]])
    assert 300 <= search.smallest <= 1024
    assert all(size < search.smallest for size in search.sizes)
