"""What `xaihub show` says of methods: what the authors stated, what is derived, and what is our choice."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from xaihub import Hub
from xaihub.cli import cli
from xaihub.specs import MethodSpec

PLUGINS = ("shapley", "expo", "scores_activation")
SPECS = [
    (registry.noun, spec)
    for registry in Hub().registries.values()
    for spec in registry
    if isinstance(spec, MethodSpec) and spec.plugin in PLUGINS
]


@pytest.mark.parametrize("kind", ["explainers", "global_explainers", "metrics", "objectives"])
def test_every_method_with_a_paper_marks_what_is_whose(kind: str) -> None:
    marks = ("stated", "derived", "our choice")
    specs = [spec for spec in getattr(Hub(), kind) if spec.paper]
    assert [spec.name for spec in specs if not any(mark in spec.variant.lower() for mark in marks)] == []
    assert specs


@pytest.mark.parametrize(("noun", "spec"), SPECS, ids=lambda item: getattr(item, "name", item))
def test_show_marks_what_is_stated_and_what_is_our_choice(noun: str, spec: MethodSpec) -> None:
    shown = " ".join(CliRunner().invoke(cli, ["show", f"{noun}:{spec.name}"]).stdout.split())
    variant = shown.partition(" variant ")[2].lower()
    assert "stated" in variant
    assert "our choice" in variant


@pytest.mark.parametrize(
    ("name", "ours", "derived"),
    [
        ("objective:expo-fidelity", "masks of all sizes as neighbours and c = 1", "never penalises slope (derived)"),
        ("objective:scores_activation", "every use on images", "can be folded (derived)"),
        ("objective:shapley", "lambda = 1", "Shapley values at that loss's minimum (derived)"),
    ],
)
def test_what_is_ours_on_images_is_not_the_papers(name: str, ours: str, derived: str) -> None:
    shown = " ".join(CliRunner().invoke(cli, ["show", name]).stdout.split())
    assert derived in shown
    after = shown.partition(ours)[2]
    assert after
    assert after.index("(our choice)") < after.find("(stated") % len(after)
