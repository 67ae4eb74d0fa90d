"""The table of `bench_peers.py` on a GPU, in wall time: float32, bfloat16 and float16 against usual implementations.

python tests/benchmarks/gpu.py

The defaults are sized for less than ten minutes. Both sides get float32 matrix products as torch's settings say.
"""

from __future__ import annotations

import sys

import torch
from bench_peers import Setup, parser, table

import xaihub


def main() -> None:
    """Print the table."""
    made = parser(__doc__)
    made.set_defaults(masks=1000, repeats=3)
    made.add_argument("--precisions", nargs="+", default=["f32", "bf16", "f16"])
    options = made.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device; bench_peers.py is for CPUs")
    print(torch.cuda.get_device_name())

    def make(name: str) -> dict[str, Setup]:
        return {each: Setup.of(name, xaihub.Runtime(precision=each), "cuda") for each in options.precisions}

    table(options.models, make, (16, 32, 64, 128, 256), options)


if __name__ == "__main__":
    main()
