"""Runs, saved results, tables, plugin files and the command line as inputs that are not trusted."""

from __future__ import annotations

import io
import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import xaihub_zoo
from tests.fuzzing.formats import FORMATS
from tests.fuzzing.formats.runs import HOSTILE
from tests.test_security import peak, refused
from xaihub.cli import cli
from xaihub.errors import InputError, OutputError, ParameterError, PluginError
from xaihub.evaluation.annotations import read_labels
from xaihub.evaluation.charts import plot
from xaihub.evaluation.config import read_config
from xaihub.evaluation.leaderboard import boards
from xaihub.evaluation.merge import merge
from xaihub.evaluation.store import RunStore
from xaihub.explainers.explanation import Explanation
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost
from xaihub.plugin_tools.installing import install
from xaihub.plugin_tools.onefile import register_file
from xaihub.ranking.explanation import GlobalExplanation


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("XAIHUB_TRUST_PATHS", raising=False)
    monkeypatch.chdir(tmp_path)


def hub() -> Hub:
    host = PluginHost(entry_points=[], environ={})
    host.register(xaihub_zoo, name="zoo", builtin=True)
    return Hub(host)


class TestRuns:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "run.sqlite").write_bytes(next(f for f in FORMATS if f.name == "run.sqlite").seeds()[0])
        return tmp_path / "run"

    def edit(self, run: Path, *statements: str) -> None:
        with closing(sqlite3.connect(run / "run.sqlite")) as file:
            for statement in statements:
                file.executescript(statement)

    @pytest.mark.parametrize("key", ["../../../escaped", "/escaped", "A" * 64, "ab" * 31, "../" + "a" * 61, ""])
    def test_merging_writes_inside_its_output_only(self, run: Path, tmp_path: Path, key: str) -> None:
        target = run / "maps" / key[:2] / f"{key}.safetensors"
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file({"values": torch.ones(1, 2, 2)}, target)
        self.edit(run, f"UPDATE explanations SET key = '{key}'")  # noqa: S608
        before = {path for path in tmp_path.rglob("*") if path.is_file()}
        refused(lambda: merge([run], tmp_path / "merged"), kind=OutputError)
        after = {path for path in tmp_path.rglob("*") if path.is_file() and tmp_path / "merged" not in path.parents}
        assert {path for path in after if "run.sqlite" not in path.name} <= before
        with RunStore(run) as store:
            refused(store.rows, kind=OutputError)

    @pytest.mark.parametrize("statement", [text for text in HOSTILE if not text.startswith(("UPDATE", "DELETE"))])
    def test_another_schema_is_refused_before_it_is_used(self, run: Path, statement: str) -> None:
        self.edit(run, statement)
        assert "its tables differ" in refused(lambda: RunStore(run), kind=OutputError)

    @pytest.mark.parametrize("name", ["run.sqlite", "run.sqlite-wal", "run.sqlite-shm", "run.sqlite-journal", "maps"])
    def test_links_are_not_followed(self, run: Path, tmp_path: Path, name: str) -> None:
        other = tmp_path / "other"
        if name == "run.sqlite":
            (run / name).rename(other)
        elif name == "maps":
            (other / "ab").mkdir(parents=True)
            (other / "ab" / ".precious").write_text("x")
        else:
            other.write_text("precious")
        (run / name).symlink_to(other)
        refused(lambda: RunStore(run), kind=OutputError)
        assert other.is_file() or (other / "ab" / ".precious").exists()

    def test_a_linked_lock_does_not_empty_a_file(self, run: Path, tmp_path: Path) -> None:
        (tmp_path / "precious").write_text("x")
        (run / ".lock").symlink_to(tmp_path / "precious")
        with RunStore(run) as store:
            assert "is a link" in refused(lambda: store.writing().__enter__(), kind=OutputError)
        assert (tmp_path / "precious").read_text() == "x"

    def test_a_journal_that_names_a_further_file_is_refused(self, run: Path, tmp_path: Path) -> None:
        (run / "run.sqlite-journal").write_bytes(b"x" * 600 + bytes.fromhex("d9d505f920a163d7"))
        assert "journal" in refused(lambda: RunStore(run), kind=OutputError)

    @pytest.mark.parametrize(
        ("column", "value"),
        [("value", "'x'"), ("seconds", "x'00'"), ("details", "'{'"), ("details", "'[1]'"), ("curve", "'[[1],[\"a\"]]'"),
         ("forward_passes", "1.5"), ("parameters", "'[]'"), ("value", "9e999"), ("error", "3")],
    )  # fmt: skip
    def test_a_value_of_a_wrong_type_is_damage(self, run: Path, column: str, value: str) -> None:
        table, some = ("methods", "parameters LIKE '%2}'") if column == "parameters" else ("scores", "value < 0.3")
        self.edit(run, f"UPDATE {table} SET {column} = {value} WHERE {some}")  # noqa: S608
        with RunStore(run) as store:
            if column == "error":  # SQLite turns the number into text
                assert {row.error for row in store.rows()} == {"3", None}
            else:
                assert "is damaged" in refused(store.rows, kind=OutputError)
            if column in ("value", "parameters"):
                assert "is damaged" in refused(lambda: boards(store.scores(), hub()), kind=OutputError)

    @pytest.mark.parametrize("name", ["$\\frac{$", "a\0b", "x" * 5000, "../../escaped", "a\nb"])
    @pytest.mark.filterwarnings("ignore")
    def test_charts_are_drawn_inside_the_folder_whatever_names_are(self, run: Path, tmp_path: Path, name: str) -> None:
        with closing(sqlite3.connect(run / "run.sqlite")) as file:
            file.execute("UPDATE explanations SET model = ?", (name,))
            file.execute("UPDATE methods SET name = ? WHERE name = 'gradcam'", (name,))
            file.commit()
        with RunStore(run) as store:
            rows = store.rows()
        written = plot(boards(rows, hub()), rows, tmp_path / "charts")
        assert written
        assert {file.parent for file in written} == {tmp_path / "charts"}

    def test_a_refused_run_is_not_left_locked(self, run: Path, tmp_path: Path) -> None:
        self.edit(run, "UPDATE explanations SET key = 'x'")
        refused(lambda: merge([run], tmp_path / "merged"), kind=OutputError)
        with closing(sqlite3.connect(run / "run.sqlite", timeout=0)) as file:
            file.execute("BEGIN EXCLUSIVE")


class TestSavedResults:
    @pytest.mark.parametrize(
        "change",
        [{"geometry": {"original": [10**9] * 2, "scaled": [1, 1], "offset": [0, 0], "crop": [1, 1]}},
         {"geometry": {"original": [0, 1], "scaled": [1, 1], "offset": [0, 0], "crop": [1, 1]}}, {"warnings": 3},
         {"target": {"index": "a"}}, {"explainer": []}, {"sets": {}}, {"predicted": None}],
        ids=str,
    )  # fmt: skip
    def test_a_record_is_checked_when_it_is_read(self, tmp_path: Path, change: Any) -> None:
        seeds = {item.name: item.seeds()[0] for item in FORMATS}
        record = {**json.loads(seeds["explanation json"]), **change}
        (tmp_path / "x.json").write_text(json.dumps(record))
        (tmp_path / "x.safetensors").write_bytes(seeds["explanation safetensors"])
        assert "damaged" in refused(lambda: Explanation.load(tmp_path / "x"), kind=OutputError)

    @pytest.mark.parametrize(
        "change", [{"grid": [0, 0]}, {"names": "abcd"}, {"metadata": {"warnings": 1}}, {"runs": 3}]
    )
    def test_a_ranking_is_checked_when_it_is_read(self, tmp_path: Path, change: Any) -> None:
        seeds = {item.name: item.seeds()[0] for item in FORMATS}
        (tmp_path / "r.json").write_text(json.dumps({**json.loads(seeds["ranking json"]), **change}))
        assert "damaged" in refused(lambda: GlobalExplanation.load(tmp_path / "r.json"), kind=OutputError)


class TestTables:
    @pytest.mark.parametrize(
        ("text", "reason"),
        [(b"file,class_index\na\0.png,1\n", "null byte"), (b"file,class_index\na.png,1e30\n", "not a number up to"),
         (b"file,class_index\n\xff,1\n", "not a CSV file"), (b"f" * 200_000, "not a CSV file"), (b"", "no column")],
    )  # fmt: skip
    def test_a_table_is_refused_in_one_line(self, tmp_path: Path, text: bytes, reason: str) -> None:
        (tmp_path / "x.csv").write_bytes(text)
        assert reason in refused(lambda: read_labels("x.csv", ["a.png"]), kind=InputError)

    def test_many_columns_times_many_rows_are_refused(self, tmp_path: Path) -> None:
        header = ",".join(["file", "class_index", *(f"c{i}" for i in range(100_000))])
        (tmp_path / "x.csv").write_text(header + "\na.png,1" * 10_000)
        before = peak()
        assert "cells" in refused(lambda: read_labels("x.csv", ["a.png"]), kind=InputError)
        assert peak() - before < 2**19


class TestPluginFiles:
    @pytest.mark.parametrize(
        "line", ["name = 5", "tags = 3", "bounds = ('a', 'b')", "higher_is_better = 'yes'", "axes = (1,)"]
    )
    def test_an_attribute_of_a_wrong_type_is_named(self, tmp_path: Path, line: str) -> None:
        (tmp_path / "p.py").write_text(f"from xaihub import Metric\nclass A(Metric):\n    {line}\n")
        host = PluginHost(entry_points=[], environ={})
        message = refused(lambda: register_file(host, tmp_path / "p.py"), kind=PluginError)
        assert f"A.{line.partition(' ')[0]} cannot be" in message

    def test_a_file_of_classes_is_not_run_when_it_is_registered(self, tmp_path: Path) -> None:
        (tmp_path / "p.py").write_text("open('canary', 'w')\nfrom xaihub import Metric\nclass A(Metric): pass\n")
        assert register_file(PluginHost(entry_points=[], environ={}), tmp_path / "p.py").name == "p"
        assert not (tmp_path / "canary").exists()


class TestCommandLine:
    @pytest.mark.parametrize("name", ["-rfile", "--index-url=http://x", "-"])
    def test_a_name_after_two_dashes_is_never_an_option(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("xaihub.plugin_tools.installer.run", lambda *_: pytest.fail("it was run"))
        result = CliRunner().invoke(cli, ["plugins", "install", "--", name])
        assert result.exit_code == 2
        assert "is an option, not a name" in result.stderr
        assert "is an option" in refused(lambda: install([name]), kind=PluginError)

    def test_a_standard_error_that_cannot_be_written_changes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Full(io.StringIO):
            def write(self, text: str) -> int:
                raise OSError(28, "No space left on device")

        from xaihub.cli._output import say

        monkeypatch.setattr(sys, "stderr", Full())
        say("a note")  # nobody can read it, and nothing else happens


def test_a_configuration_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("images: [x]\nbatch_size: 100000000000\n")
    assert "batch_size" in refused(lambda: read_config(tmp_path / "c.yaml"), kind=ParameterError)


def test_yaml_with_many_values_is_refused_before_it_is_built(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("images: [" + "[]," * 1_000_000 + "]")
    before = peak()
    assert "more than 250,000 values" in refused(lambda: read_config(tmp_path / "c.yaml"), kind=ParameterError)
    assert peak() - before < 2**19
