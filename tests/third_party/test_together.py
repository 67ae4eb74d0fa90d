"""Third-party plugins beside each other and beside the built-in ones, in a fresh environment."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def commands(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [line.removeprefix("$ ") for line in "".join(blocks).splitlines()]


@pytest.mark.slow  # test_scaffold.py runs what it makes in this process
def test_the_tutorial_leads_from_nothing_to_a_listed_conformant_installed_plugin_and_back(fresh: Any) -> None:
    before = fresh.installed()
    said = {}
    started = os.times()

    for line in commands("tutorial/first-explainer.md"):
        done = fresh.run(*shlex.split(line))
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        said[line] = done.stdout

    spent = os.times()  # in seconds of the processor, which do not depend on what else the machine does
    assert spent.children_user + spent.children_system < started.children_user + started.children_system + 120
    assert next(iter(said)) == "xaihub plugins new celldrop"
    report = said["xaihub plugins install --editable ./xaihub-celldrop"]
    assert "celldrop (xaihub-celldrop 0.1.0) adds explainers: celldrop" in report
    assert "imports nothing heavy" in report
    assert "celldrop" in said["xaihub list explainers"]
    assert (fresh.work / "xaihub-out/chelsea__efficientnet_lite0__celldrop.png").is_file()
    assert "failed" not in said["xaihub plugins check celldrop"]
    assert re.search(r"\d+ passed", said["python -m pytest -q xaihub-celldrop"])
    assert fresh.installed() == before
    assert (fresh.work / "xaihub-celldrop" / "pyproject.toml").is_file()


HOOK = "from xaihub import hookimpl\n@hookimpl\ndef {}: return []\n"
BROKEN = {
    "syntax": ("def broken(:\n", "SyntaxError"),
    "quits": ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
    "missing": ("import a_library_that_is_not_there\n", "No module named 'a_library_that_is_not_there'"),
    "misspelt": (
        "from xaihub import hookimpl\n@hookimpl\ndef xaihub_register_metric(): return []\n",
        "there is no hook",
    ),
    "signature": ("from xaihub import hookimpl\n@hookimpl\ndef xaihub_register_metrics(x): return []\n", "Argument(s)"),
}


def test_with_five_broken_plugins_everything_else_works_and_each_is_named_once_with_its_remedy(fresh: Any) -> None:
    fresh.plant("good", fresh.good())
    for name, (source, _) in BROKEN.items():
        fresh.plant(name, source)

    for arguments in (["--help"], ["list"], ["explain", "-e", "good", "-q"]):
        done = fresh.xaihub(*arguments)
        assert done.returncode == 0, done.stderr
        lines = done.stderr.splitlines()
        assert len(lines) == len(BROKEN)
        for name, (_, reason) in BROKEN.items():
            (line,) = [line for line in lines if f"plugin '{name}' (xaihub-{name} 0.3)" in line]
            assert reason in line
            assert line.endswith(f"(remove it: xaihub plugins uninstall xaihub-{name})")


def test_every_remedy_works(fresh: Any) -> None:
    before = fresh.installed()
    for name, (source, _) in BROKEN.items():
        fresh.plant(name, source)

    said = fresh.xaihub("list").stderr
    remedies = re.findall(r"remove it: xaihub (plugins uninstall \S+)\)", said)
    done = fresh.xaihub("plugins", "uninstall", "-y", *(remedy.split()[-1] for remedy in remedies))

    assert done.returncode == 0, done.stderr
    assert fresh.installed() == before
    assert fresh.xaihub("list").stderr == ""


def test_two_plugins_of_one_name_a_built_in_keeps_it_and_the_other_answers_to_the_long_one(fresh: Any) -> None:
    fresh.plant("second", fresh.good("rise"))
    # The same entry-point name as the built-in plugin's, too.
    fresh.plant("third", fresh.good("third"), entry="[xaihub]\nrise = xaihub_third\n")

    listed = fresh.xaihub("list", "explainers", "--json")
    owners = {record["name"]: record["plugin"] for record in json.loads(listed.stdout)}

    assert owners["rise"] == "rise"
    assert owners["second/rise"] == "second"
    assert "third" not in owners
    assert "explainer 'rise' belongs to plugin 'rise'; use 'second/rise'" in listed.stderr
    assert "plugin 'rise' (xaihub-third 0.3): skipped, because plugin 'rise' (xaihub" in listed.stderr
    # The one that was skipped can be removed by its distribution's name; the built-in of that name cannot.
    assert fresh.xaihub("plugins", "uninstall", "-y", "rise").returncode == 1
    assert fresh.xaihub("plugins", "uninstall", "-y", "xaihub-third").returncode == 0


def test_a_malformed_list_of_entry_points_costs_only_its_own_distribution(fresh: Any) -> None:
    fresh.plant("good", fresh.good())
    fresh.plant("sick", fresh.good(), entry="[xaihub]\nthis line has no equals sign\n")

    done = fresh.xaihub("list", "explainers", "--json")

    assert done.returncode == 0, done.stderr
    assert {"good", "rise"} <= {record["name"] for record in json.loads(done.stdout)}
    (line,) = done.stderr.splitlines()
    assert "skipped the entry points of distribution 'xaihub-sick': entry_points.txt is broken" in line


HOSTILE = "\x1b[31mred\x1b[0m \x9b2J\x1b]0;title\x07 \u202eback <script>alert(1)</script>"


def test_hostile_metadata_is_neutralised_in_everything_that_is_printed(fresh: Any) -> None:
    source = fresh.good("evil").replace("'A constant.'", repr(HOSTILE))
    text = "Metadata-Version: 2.1\nName: xaihub-evil\nVersion: 0.3\n"
    text += f"Summary: {HOSTILE}\nLicense: {HOSTILE}\n\n{HOSTILE}\n"
    fresh.plant("evil", source, metadata=text)
    fresh.plant("named", fresh.good("<b>\x1b[31mevil</b>"))

    said = []
    for arguments in (["list"], ["plugins", "list"], ["plugins", "info", "evil"]):
        for mode in ([], ["--json"]):
            done = fresh.xaihub(*arguments, *mode)
            assert done.returncode == 0, done.stderr
            assert re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", done.stdout + done.stderr) == []
            said.append(done)
    assert "unusable name" in said[0].stderr
    (record,) = [record for record in json.loads(said[1].stdout)["explainers"] if record["name"] == "evil"]
    assert record["summary"] == HOSTILE
    assert "red  back <script>" in said[4].stdout


def test_what_a_plugin_prints_while_it_is_loaded_does_not_mix_with_results(fresh: Any) -> None:
    fresh.plant("chatty", "print('hello from the plugin')\n" + fresh.good("chatty"))

    done = fresh.xaihub("list", "explainers", "--json")

    assert "chatty" in [record["name"] for record in json.loads(done.stdout)]
    assert "hello from the plugin" in done.stderr
