"""`xaihub cache`."""

from __future__ import annotations

import json

from xaihub.models import cache

from .conftest import Run


def test_what_is_kept_is_listed_and_deleted(run: Run) -> None:
    cache.put("compiled", "a", bytes(3 * 2**20), about="small (openvino)")
    cache.put("batches", "b", b"{}", about="small")
    listed = run("cache", "list")

    assert listed.exit_code == 0
    assert "small (openvino)  3.0 MiB" in listed.stdout
    assert "2 entries, 3.0 MiB" in listed.stdout
    assert {row["kind"] for row in json.loads(run("cache", "list", "--json").stdout)} == {"compiled", "batches"}
    assert "1 entries deleted, 3.0 MiB" in run("cache", "clear", "compiled").stdout
    assert [entry.kind for entry in cache.entries()] == ["batches"]
    run("cache", "clear")
    assert cache.entries() == []
