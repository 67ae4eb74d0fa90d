"""Registries: ownership of names, qualified names, and suggestions."""

from __future__ import annotations

from typing import Any

import pytest

from xaihub.errors import MissingExtra, ModelError, PluginError, UnknownName, did_you_mean
from xaihub.hookspecs import hookimpl
from xaihub.hub.host import PluginHost
from xaihub.hub.registry import Registry
from xaihub.specs import ExplainerSpec, ModelCard


class Says:
    """A plugin that registers what it is given."""

    def __init__(self, *records: Any) -> None:
        self.records = records

    @hookimpl
    def xaihub_register_explainers(self) -> list[Any]:
        return list(self.records)


def spec(name: Any, summary: str = "") -> ExplainerSpec:
    return ExplainerSpec(name=name, summary=summary, target="xaihub.errors:XaihubError")


def filled(host: PluginHost) -> Registry[ExplainerSpec]:
    return Registry(host, "xaihub_register_explainers", ExplainerSpec, "explainer")


@pytest.fixture
def host() -> PluginHost:
    return PluginHost(entry_points=[], environ={})


@pytest.mark.parametrize("order", [("own", "other"), ("other", "own")])
def test_a_builtin_keeps_its_name_whatever_the_order_and_the_other_is_reached_by_plugin(
    host: PluginHost, order: tuple[str, str]
) -> None:
    for name in order:
        host.register(Says(spec("rise", name)), name=name, builtin=name == "own")
    registry = filled(host)
    assert registry.get("rise").summary == "own"
    assert registry.get("own/rise").summary == "own"
    assert registry.get("other/rise").summary == "other"
    assert registry.names() == ["other/rise", "rise"]
    assert host.warnings == ["plugin 'other': explainer 'rise' belongs to plugin 'own'; use 'other/rise'"]


@pytest.mark.parametrize("record", [7, "rise", None, ModelCard(name="card"), ExplainerSpec])
def test_a_record_of_another_type_is_named_and_the_others_are_kept(host: PluginHost, record: Any) -> None:
    host.register(Says(record, spec("fine")), name="odd")
    assert filled(host).names() == ["fine"]
    (line,) = host.warnings
    assert "not a ExplainerSpec" in line
    assert type(record).__name__ in line


@pytest.mark.parametrize(
    "name",
    [
        "",
        " rise",
        "a b",
        "a/b",
        "a=b",
        "a,b",
        "a\nb",
        "<b>a",
        "a&b",
        "a'",
        "\x1b[31ma",
        "-e",
        "--help",
        ".a",
        "x" * 101,
        5,
        None,
    ],
)
def test_a_name_that_could_not_be_typed_is_refused(host: PluginHost, name: Any) -> None:
    host.register(Says(spec(name), spec("fine")), name="odd")
    assert filled(host).names() == ["fine"]
    assert repr(name)[:100] in host.warnings[0].replace("\\\\n", "\\n")


def test_a_clash_between_third_parties_is_reported_neutrally_and_both_are_reached(host: PluginHost) -> None:
    for name in ("ann", "bob"):
        host.register(Says(spec("lens", name)), name=name)
    registry = filled(host)

    assert host.warnings == [
        "plugin 'bob': plugin 'ann' registers explainer 'lens' as well and is loaded first;"
        " use 'bob/lens' for this one and 'ann/lens' for the other"
    ]
    assert (registry.get("ann/lens").summary, registry.get("bob/lens").summary) == ("ann", "bob")


def test_no_clash_suggests_to_remove_a_plugin(host: PluginHost) -> None:
    for name in ("ann", "bob"):
        info = host.register(Says(spec("lens")), name=name)
        info.distribution = f"xaihub-{name}"
    filled(host)

    (line,) = host.warnings
    assert "remove" not in line


def test_a_plugin_that_registers_a_name_twice_keeps_the_first(host: PluginHost) -> None:
    host.register(Says(spec("lens", "first"), spec("lens", "second")), name="ann")

    assert filled(host).get("lens").summary == "first"
    assert host.warnings == ["plugin 'ann': registers explainer 'lens' twice; the first is used"]


def test_hyphens_and_underscores_in_names_are_alike(host: PluginHost) -> None:
    host.register(Says(spec("my_lens")), name="my-lab")
    host.register(Says(spec("other")), name="my_lab")
    registry = filled(host)

    assert registry.names() == ["my_lens"]
    assert registry.get("my-lens") is registry.get("my_lab/my_lens") is registry.get("my-lab/my-lens")
    assert host.warnings == ["plugin 'my_lab': skipped, because plugin 'my-lab' already has that name"]
    assert host.plugin("my_lab").name == "my-lab"


@pytest.mark.parametrize("name", ["-x", "", "a b", "x" * 101, "a/b"])
def test_a_plugin_whose_name_could_not_be_typed_is_skipped(host: PluginHost, name: str) -> None:
    host.register(Says(spec("lens")), name=name)

    assert filled(host).names() == []
    assert "its name cannot be typed in a command" in host.warnings[0]


def test_a_summary_is_one_line_of_at_most_200_characters(host: PluginHost) -> None:
    host.register(Says(spec("long", "word\n" * 1000), spec("odd", 5)), name="p")  # type: ignore[arg-type]
    registry = filled(host)

    assert registry.names() == ["long"]
    assert len(registry.get("long").summary) == 200
    assert registry.get("long").summary.startswith("word word ")
    assert "'odd' with a summary that is not text" in host.warnings[0]


def test_an_error_in_the_place_of_a_record_costs_only_that_record(host: PluginHost) -> None:
    host.register(Says(ModelError("card 'x.yaml' is broken", hint="repair it"), spec("fine")), name="zoo")
    assert filled(host).names() == ["fine"]
    assert host.warnings == ["plugin 'zoo': card 'x.yaml' is broken (repair it)"]


def test_an_unknown_name_lists_near_names(host: PluginHost) -> None:
    host.register(Says(spec("rise"), spec("gradcam")), name="p")
    with pytest.raises(UnknownName, match=r"no explainer is named 'risee' \(did you mean 'rise'\?\)"):
        filled(host).get("risee")


def test_a_name_that_resembles_nothing_says_where_all_names_are(host: PluginHost) -> None:
    with pytest.raises(UnknownName, match="xaihub list explainers"):
        filled(host).get("zzz")


def test_a_registry_knows_its_names_and_iterates_in_their_order(host: PluginHost) -> None:
    host.register(Says(spec("b"), spec("a")), name="p")
    registry = filled(host)
    assert [record.name for record in registry] == ["a", "b"]
    assert "a" in registry
    assert "p/a" in registry
    assert "q/a" not in registry
    assert 3 not in registry
    assert registry.get("a").plugin == "p"


class TestLoadingARecord:
    def test_gives_the_object(self) -> None:
        from xaihub.errors import XaihubError

        assert spec("x").load() is XaihubError

    @pytest.mark.parametrize(
        ("target", "reason"),
        [
            ("no_such_module.method:Thing", "there is no module 'no_such_module'"),
            ("xaihub.no_such:Thing", "there is no module 'xaihub.no_such'"),
            ("xaihub.errors:Thing", "AttributeError"),
            ("", "ValueError"),
        ],
    )
    def test_a_broken_target_names_the_plugin(self, target: str, reason: str) -> None:
        record = ExplainerSpec(name="x", target=target, plugin="odd")
        with pytest.raises(PluginError, match=f"plugin 'odd'.*{reason}"):
            record.load()

    @pytest.mark.parametrize("source", ["raise SystemExit(1)", "1 / 0", "import"])
    def test_whatever_its_module_raises_names_the_plugin(
        self, source: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "broken_method.py").write_text(source, encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(PluginError, match="plugin 'odd' cannot load 'x' from 'broken_method:X'"):
            ExplainerSpec(name="x", target="broken_method:X", plugin="odd").load()

    @pytest.mark.parametrize(("extra", "hint"), [("zoo", r"xaihub\[zoo\]"), ("", "pip install shap_of_the_future")])
    def test_a_missing_library_says_what_to_install(
        self, extra: str, hint: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The plugin's own name begins with the library's: only whole parts of dotted names may be compared.
        (tmp_path / "shap_of_the_future_plugin.py").write_text("import shap_of_the_future", encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(MissingExtra, match=f"needs 'shap_of_the_future'.*{hint}"):
            ExplainerSpec(name="x", target="shap_of_the_future_plugin:X", extra=extra).load()


def test_near_names_ignore_case_and_find_parts() -> None:
    assert did_you_mean("GradCam", ["gradcam", "rise"]) == "did you mean 'gradcam'?"
    assert did_you_mean("gradients", ["integrated_gradients"]) == "did you mean 'integrated_gradients'?"
    assert did_you_mean("zz", ["rise"]) == ""
