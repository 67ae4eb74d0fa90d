"""The plugin host: a plugin that fails disables only itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from xaihub.errors import PluginError
from xaihub.hookspecs import hookimpl
from xaihub.hub.host import HEAVY, PluginHost
from xaihub.specs import ExplainerSpec

EXPLAINERS = "xaihub_register_explainers"


@dataclass
class Dist:
    name: str
    version: str = "1.2"


@dataclass
class Point:
    """An entry point as importlib.metadata gives it."""

    name: str
    loader: Callable[[], Any]
    dist: Dist | None

    def load(self) -> Any:
        return self.loader()


class Good:
    @hookimpl
    def xaihub_register_explainers(self) -> list[ExplainerSpec]:
        return [ExplainerSpec(name="good")]


def point(name: str, plugin: Any, dist: str = "") -> Point:
    return Point(name, lambda: plugin, Dist(dist or f"xaihub-{name}"))


def failing(name: str, error: BaseException) -> Point:
    def load() -> Any:
        raise error

    return Point(name, load, Dist(f"xaihub-{name}"))


def names(host: PluginHost, hook: str = EXPLAINERS) -> list[str]:
    return [record.name for _, record in host.collect(hook)]


class WrongSignature:
    @hookimpl
    def xaihub_register_explainers(self, surprise: int) -> list[ExplainerSpec]:
        return [ExplainerSpec(name=str(surprise))]


class Misspelt:
    @hookimpl
    def xaihub_register_explaners(self) -> list[ExplainerSpec]:
        return []


class Unmarked:
    def xaihub_register_explainers(self) -> list[ExplainerSpec]:
        return []


class HalfWay:
    @hookimpl
    def xaihub_register_explainers(self) -> Iterator[ExplainerSpec]:
        yield ExplainerSpec(name="half")
        raise RuntimeError("stopped half-way")


class Quits:
    @hookimpl
    def xaihub_register_explainers(self) -> list[ExplainerSpec]:
        sys.exit(3)


class NoList:
    @hookimpl
    def xaihub_register_explainers(self) -> Any:
        return 7


class Text:
    @hookimpl
    def xaihub_register_explainers(self) -> Any:
        return "rise"


class Nothing:
    @hookimpl
    def xaihub_register_explainers(self) -> Any:
        return None


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (failing("bad", ImportError("no such thing")), "ImportError: no such thing"),
        (failing("bad", SyntaxError("invalid syntax")), "SyntaxError"),
        (failing("bad", SystemExit(1)), "SystemExit: 1"),
        (failing("bad", RuntimeError("two\nlines")), "RuntimeError: two lines"),
        (point("bad", WrongSignature()), "surprise"),
        (point("bad", Misspelt()), "did you mean 'xaihub_register_explainers'"),
        (point("bad", Unmarked()), "xaihub_register_explainers is not marked with @hookimpl"),
        (point("bad", HalfWay()), "RuntimeError: stopped half-way"),
        (point("bad", Quits()), "SystemExit: 3"),
        (point("bad", NoList()), "returned int, not a list"),
        (point("bad", Text()), "returned str, not a list"),
        (point("bad", Nothing()), "returned NoneType, not a list"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_plugin_costs_only_itself_and_one_line_names_it(broken: Point, reason: str) -> None:
    host = PluginHost(entry_points=[broken, point("good", Good())], environ={}).load()
    assert names(host) == ["good"]
    (line,) = host.warnings
    assert line.startswith("plugin 'bad' (xaihub-bad 1.2): ")
    assert reason in line
    assert line.endswith("(remove it: xaihub plugins uninstall xaihub-bad)")
    assert "\n" not in line
    assert host.plugin("bad").problems
    assert not host.plugin("good").problems


@pytest.mark.parametrize("broken", [failing("bad", SystemExit(1)), point("bad", Misspelt())])
def test_strict_mode_raises_when_a_plugin_cannot_be_loaded(broken: Point) -> None:
    host = PluginHost(entry_points=[broken], environ={"XAIHUB_STRICT_PLUGINS": "1"})
    with pytest.raises(PluginError, match="xaihub-bad 1.2"):
        host.load()


def test_strict_mode_raises_when_a_hook_fails() -> None:
    host = PluginHost(entry_points=[point("bad", HalfWay())], environ={"XAIHUB_STRICT_PLUGINS": "1"}).load()
    with pytest.raises(PluginError, match="half-way"):
        names(host)


@pytest.mark.parametrize("value", ["", "0"])
def test_strict_mode_is_off_when_its_variable_is_empty_or_zero(value: str) -> None:
    host = PluginHost(entry_points=[point("bad", Misspelt())], environ={"XAIHUB_STRICT_PLUGINS": value}).load()
    assert len(host.warnings) == 1


def test_a_hook_of_a_newer_host_is_accepted_when_marked_optional() -> None:
    class Newer(Good):
        @hookimpl(optionalhook=True)
        def xaihub_register_dreams(self) -> list[str]:
            return []

    host = PluginHost(entry_points=[point("newer", Newer())], environ={}).load()
    assert host.warnings == []
    assert names(host) == ["good"]


def test_two_plugins_of_one_name_keep_the_first_and_name_both() -> None:
    host = PluginHost(entry_points=[point("same", Good(), "one"), point("same", Quits(), "two")], environ={}).load()
    assert names(host) == ["good"]
    (line,) = host.warnings
    assert "'same' (two 1.2)" in line
    assert "'same' (one 1.2)" in line


def test_a_builtin_plugin_keeps_its_name_whatever_the_order() -> None:
    host = PluginHost(
        entry_points=[point("rise", Quits(), "other"), point("rise", Good(), "xaihub")], environ={}
    ).load()
    assert host.plugin("rise").builtin
    assert names(host) == ["good"]


def test_one_module_under_two_names_is_registered_once() -> None:
    plugin = Good()
    host = PluginHost(entry_points=[point("one", plugin), point("two", plugin)], environ={}).load()
    assert names(host) == ["good"]
    (line,) = host.warnings
    assert "its module is already registered as plugin 'one'" in line


def test_a_plugin_that_imports_torch_when_loaded_is_named_but_works(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in HEAVY:
        monkeypatch.delitem(sys.modules, name, raising=False)

    def load() -> Any:
        monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
        return Good()

    host = PluginHost(entry_points=[Point("slow", load, Dist("xaihub-slow"))], environ={}).load()
    assert names(host) == ["good"]
    (line,) = host.warnings
    assert "'slow' (xaihub-slow 1.2): imports torch when loaded" in line


def test_the_allow_list_admits_only_named_plugins_and_always_the_builtin_ones() -> None:
    points = [point("own", Good(), "xaihub"), point("a", Quits()), point("b", Quits())]
    host = PluginHost(entry_points=points, environ={"XAIHUB_LOAD_PLUGINS": "b, c"}).load()
    assert [info.name for info in host.plugins] == ["own", "b"]


def test_an_empty_allow_list_admits_no_third_party() -> None:
    points = [point("own", Good(), "xaihub"), point("a", Quits())]
    host = PluginHost(entry_points=points, environ={"XAIHUB_LOAD_PLUGINS": ""}).load()
    assert [info.name for info in host.plugins] == ["own"]


def test_tracing_prints_each_hook_call(capsys: pytest.CaptureFixture[str]) -> None:
    host = PluginHost(entry_points=[point("good", Good())], environ={"XAIHUB_TRACE_PLUGINS": "1"}).load()
    names(host)
    assert "[plugins] xaihub_register_explainers -> good: [ExplainerSpec(name='good'" in capsys.readouterr().err


def test_nothing_is_printed_without_tracing(capsys: pytest.CaptureFixture[str]) -> None:
    names(PluginHost(entry_points=[point("good", Good())], environ={}).load())
    assert capsys.readouterr() == ("", "")


def test_what_a_plugin_prints_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    class Chatty(Good):
        @hookimpl
        def xaihub_register_metrics(self) -> list[Any]:
            print("when asked")  # noqa: T201
            return []

    def load() -> Any:
        print("when loaded")  # noqa: T201
        return Chatty()

    host = PluginHost(entry_points=[Point("chatty", load, Dist("xaihub-chatty"))], environ={}).load()
    list(host.collect("xaihub_register_metrics"))
    assert capsys.readouterr() == ("", "when loaded\nwhen asked\n")
    assert host.plugin("chatty").seconds > 0


def test_builtin_plugins_are_asked_first_then_by_name() -> None:
    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        @hookimpl
        def xaihub_register_explainers(self) -> list[ExplainerSpec]:
            return [ExplainerSpec(name=self.name)]

    points = [point(name, Named(name)) for name in ("b", "a")] + [point("z", Named("z"), "xaihub")]
    assert names(PluginHost(entry_points=points, environ={}).load()) == ["z", "a", "b"]


def test_commands_are_collected_as_they_are() -> None:
    command = click.Command("hello")

    class Commands:
        @hookimpl
        def xaihub_register_commands(self) -> list[click.Command]:
            return [command]

    host = PluginHost(entry_points=[], environ={})
    info = host.register(Commands(), name="commands")
    assert list(host.collect("xaihub_register_commands")) == [(info, command)]
    assert info.hooks == ["xaihub_register_commands"]


def test_an_entry_point_without_a_distribution_is_loaded() -> None:
    host = PluginHost(entry_points=[Point("loose", Good, None)], environ={}).load()
    assert names(host) == ["good"]
    assert host.plugin("loose").label == "'loose'"


def test_a_plugin_that_was_refused_can_be_registered_again_after_its_repair() -> None:
    host = PluginHost(entry_points=[point("bad", WrongSignature())], environ={}).load()
    host.register(Good(), name="repaired")
    assert names(host) == ["good"]


class TestInstalledDistributions:
    """Through the real importlib.metadata, with distributions made by hand."""

    @pytest.fixture
    def site(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setenv("XAIHUB_LOAD_PLUGINS", "installed_good,installed_bad,installed_bare")
        return tmp_path

    def install(self, site: Path, name: str, source: str, *, metadata: bool = True) -> None:
        (site / f"{name}.py").write_text(source, encoding="utf-8")
        info = site / f"{name}-0.7.dist-info"
        info.mkdir()
        (info / "entry_points.txt").write_text(f"[xaihub]\n{name} = {name}\n", encoding="utf-8")
        text = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 0.7\n"
        (info / ("METADATA" if metadata else "OTHER")).write_text(text, encoding="utf-8")

    GOOD = (
        "from xaihub import ExplainerSpec, hookimpl\n"
        "@hookimpl\n"
        "def xaihub_register_explainers():\n"
        "    return [ExplainerSpec(name='installed')]\n"
    )

    def test_a_good_one_is_found_and_a_broken_one_is_named_with_its_version(self, site: Path) -> None:
        self.install(site, "installed_good", self.GOOD)
        self.install(site, "installed_bad", "import a_module_that_is_not_installed\n")
        host = PluginHost().load()
        assert "installed" in names(host)
        lines = [line for line in host.warnings if "installed_" in line]
        assert lines == [
            "plugin 'installed_bad' (installed-bad 0.7): skipped, failed while importing it:"
            " ModuleNotFoundError: No module named 'a_module_that_is_not_installed'"
            " (remove it: xaihub plugins uninstall installed-bad)"
        ]
        good = host.plugin("installed_good")
        assert (good.distribution, good.version, good.builtin) == ("installed-good", "0.7", False)

    @pytest.mark.filterwarnings("ignore:Implicit None on return values is deprecated:DeprecationWarning")
    def test_one_whose_metadata_is_missing_is_loaded_all_the_same(self, site: Path) -> None:
        self.install(site, "installed_bare", self.GOOD, metadata=False)
        host = PluginHost().load()
        assert "installed" in names(host)
        assert host.plugin("installed_bare").label == "'installed_bare'"

    def test_the_builtin_plugins_come_through_the_same_group(self, site: Path) -> None:
        host = PluginHost().load()
        builtin = {info.name for info in host.plugins if info.builtin}
        assert {"rise", "zoo"} <= builtin
        assert "rise" in names(host)
