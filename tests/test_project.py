"""What surrounds the code: workflows, the release check, the citation, the examples that people copy."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import yaml
from PIL import Image

import xaihub
from xaihub.evaluation.results import ScoreRow

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"imported_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_workflows_call_make_targets_that_exist(file: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    jobs = yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].values()
    commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    called = {target for command in commands for target in re.findall(r"\bmake ([a-z-]+)", command)}
    assert called
    assert called <= targets


def test_every_task_of_the_makefile_is_listed_as_phony_with_its_purpose() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    described = set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))
    phony = set(re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)[1].split())  # type: ignore[index]
    assert described == phony


def test_the_citation_and_the_package_agree() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == xaihub.__version__
    assert cited["license"] == PROJECT["license"]
    assert cited["repository-code"] == PROJECT["urls"]["Repository"]


def test_the_readme_names_every_extra() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in PROJECT["optional-dependencies"] if f"| `{name}` |" not in readme] == []


class TestRelease:
    release = imported(ROOT / "docs" / "release.py")

    def folder(self, tmp_path: Path, version: str = "1.2.3") -> Path:
        (tmp_path / "xaihub").mkdir()
        (tmp_path / "dist").mkdir()
        (tmp_path / "xaihub" / "__init__.py").write_text(f'__version__ = "{version}"\n')
        (tmp_path / "CITATION.cff").write_text(f"version: {version}\n")
        (tmp_path / "CHANGELOG.md").write_text(f"## [{version}] - 2030-01-31\n")
        (tmp_path / "dist" / f"xaihub-{version}-py3-none-any.whl").write_bytes(b"")
        return tmp_path

    def test_a_complete_version_is_ready(self, tmp_path: Path) -> None:
        assert list(self.release.unready("1.2.3", self.folder(tmp_path))) == []

    @pytest.mark.parametrize(
        ("file", "content", "found"),
        [
            ("xaihub/__init__.py", '__version__ = "1.2.2"\n', "xaihub/__init__.py does not name 1.2.3"),
            ("CITATION.cff", "version: 1.2.30\n", "CITATION.cff does not name 1.2.3"),
            ("CHANGELOG.md", "## [Unreleased]\n", "CHANGELOG.md does not name 1.2.3"),
        ],
    )
    def test_what_is_missing_is_named(self, file: str, content: str, found: str, tmp_path: Path) -> None:
        folder = self.folder(tmp_path)
        (folder / file).write_text(content)
        assert list(self.release.unready("1.2.3", folder)) == [found]

    def test_something_else_than_a_version_and_a_missing_wheel_are_named(self, tmp_path: Path) -> None:
        assert "is not a version" in next(self.release.unready("next", tmp_path))
        folder = self.folder(tmp_path)
        (folder / "dist" / "xaihub-1.2.3-py3-none-any.whl").unlink()
        assert list(self.release.unready("1.2.3", folder)) == ["dist/ has no wheel of 1.2.3 (make dist)"]

    def test_a_wheel_with_tests_or_without_plugins_is_faulty(self, tmp_path: Path) -> None:
        wheel = tmp_path / "x.whl"
        with zipfile.ZipFile(wheel, "w") as file:
            for name in ("xaihub/py.typed", "xaihub_zoo/__init__.py", "tests/test_a.py", "xaihub/bench_a.py"):
                file.writestr(name, "")
        assert list(self.release.faults(wheel)) == [
            "x.whl contains tests/test_a.py",
            "x.whl contains xaihub/bench_a.py",
            "x.whl lacks xaihub_convad/__init__.py",
        ]


def test_the_server_answers_threads_with_the_map_that_each_image_has_alone() -> None:
    testclient = pytest.importorskip("fastapi.testclient")
    client = testclient.TestClient(imported(ROOT / "docs" / "examples" / "serve" / "app.py").app)
    photo = Image.open(xaihub.sample_photo())
    photos = [photo, photo.rotate(90), photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]

    def post(number: int) -> tuple[int, bytes]:
        stream = io.BytesIO()
        photos[number].save(stream, format="PNG")
        answer = client.post("/explain?explainer=input_x_gradient", files={"image": stream.getvalue()})
        return answer.status_code, answer.content

    alone = [post(number) for number in range(3)]
    assert [code for code, _ in alone] == [200] * 3
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(post, [0, 1, 2] * 4)) == alone * 4
    assert client.post("/explain", files={"image": b"not an image"}).status_code == 422


def test_the_check_for_builds_fails_below_its_limit_only(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "check-in-ci.md").read_text(encoding="utf-8")
    script = tmp_path / "check.py"
    script.write_text(re.search(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[1])  # type: ignore[index]
    table = tmp_path / "scores.csv"
    rows = [
        ("gradcam", "relevance_mass", 0.4),
        ("gradcam", "relevance_mass", 0.8),
        ("control_centre", "relevance_mass", 0),
    ]
    pd.DataFrame(rows, columns=["explainer", "metric", "value"]).to_csv(table)
    codes = []
    for least in ("0.59", "0.61"):
        done = subprocess.run(
            [sys.executable, str(script), str(table), least], capture_output=True, text=True, check=False
        )
        codes.append(done.returncode)
        assert "0.60 of Grad-CAM's mass is inside the boxes (2 images)" in done.stdout
    assert codes == [0, 1]


def test_the_columns_that_the_check_reads_are_those_of_an_export() -> None:
    assert {"explainer", "metric", "value"} <= set(ScoreRow.__dataclass_fields__)


NOTEBOOKS = sorted((ROOT / "docs" / "examples" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_names_no_path_of_the_machine_that_ran_it(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert all(cell["outputs"] for cell in cells if cell["cell_type"] == "code" and "import" not in cell["source"][0])
    text = json.dumps(cells)
    assert not re.search(r"/(home|root|work|tmp|Users)/", text)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_cells_of_a_notebook_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)  # noqa: S102
