"""Check what was built into dist/, and whether a version can be released: `python docs/release.py [VERSION]`."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST = 2**20  # bytes of the wheel
NEEDED = ("xaihub/py.typed", "xaihub_convad/__init__.py", "xaihub_zoo/__init__.py")


def faults(wheel: Path) -> Iterator[str]:
    """Yield what a wheel must not contain, or must and does not."""
    names = zipfile.ZipFile(wheel).namelist()
    for name in names:
        if name.startswith(("tests/", "docs/")) or Path(name).name.startswith(("test_", "bench_")):
            yield f"{wheel.name} contains {name}"
    for name in NEEDED:
        if name not in names:
            yield f"{wheel.name} lacks {name}"
    if wheel.stat().st_size > MOST:
        yield f"{wheel.name} has {wheel.stat().st_size / 2**20:.1f} MiB, more than {MOST / 2**20:.1f}"


def unready(version: str, root: Path = ROOT) -> Iterator[str]:
    """Yield the reasons why `version` cannot be released from the files in `root`."""
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version):
        yield f"{version!r} is not a version such as 0.1.0 (make release VERSION=0.1.0)"
        return
    for file, pattern in (
        ("xaihub/__init__.py", rf'^__version__ = "{re.escape(version)}"$'),
        ("CITATION.cff", rf"^version: {re.escape(version)}$"),
        ("CHANGELOG.md", rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$"),
    ):
        if not re.search(pattern, (root / file).read_text(encoding="utf-8"), re.MULTILINE):
            yield f"{file} does not name {version}"
    if not (root / "dist" / f"xaihub-{version}-py3-none-any.whl").exists():
        yield f"dist/ has no wheel of {version} (make dist)"


def main() -> int:
    """Print sizes and faults, and with a version the steps that are left to a person."""
    files = sorted((ROOT / "dist").glob("xaihub-*"))
    for file in files:
        print(f"{file.name}  {file.stat().st_size / 1024:.0f} KiB")
    found = [text for file in files if file.suffix == ".whl" for text in faults(file)]
    if len(sys.argv) > 1:
        version = sys.argv[1]
        found += unready(version)
        if subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=ROOT, check=False).returncode:  # noqa: S607
            found.append("there are uncommitted changes")
    for text in found:
        print(f"error: {text}")
    if len(sys.argv) > 1 and not found:
        print(
            f"{version} can be released. What is left to a person:\n"
            "  1. read CHANGELOG.md once more; let README.md install with: pip install xaihub\n"
            f"  2. git tag -a v{version} -m {version} && git push --tags (publishes the package and the site)\n"
            "  3. write the release notes from CHANGELOG.md, and archive the release for a DOI"
        )
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
