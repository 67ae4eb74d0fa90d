"""Whatever a network returns is explained as what it is, or refused in one line that says what it is and what to do."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import xaihub
from tests import networks
from xaihub.cli import cli
from xaihub.errors import ModelError

Pair = namedtuple("Pair", "logits aux")


class Returning(networks.Net):
    """Returns what a function makes of its five logits."""

    def __init__(self, last: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.last = last

    def forward(self, inputs: Tensor) -> Any:
        return self.last(super().forward(inputs))


def explained(last: Callable[[Tensor], Any], name: str = "saliency", **values: Any) -> xaihub.Explanation:
    torch.manual_seed(0)
    (found,) = xaihub.get_explainer(name, **values).explain(networks.model(Returning(last)), networks.noise())
    return found


FUNCTION = r"explain a function of what it returns: target=FUNCTION"
DENSE = "return a dense tensor of float32"
REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "dictionary": (lambda rows: {"logits": rows, "aux": rows}, rf"a dict with 'logits', 'aux' for 1 image.*{FUNCTION}"),
    "empty dictionary": (lambda _: {}, "a dict with nothing"),
    "tuple": (lambda rows: (rows,), f"a tuple of 1 for 1 image.*{FUNCTION}"),
    "nested": (lambda rows: [(rows, rows), {"a": rows}], f"a list of 2.*{FUNCTION}"),
    "named tuple": (lambda rows: Pair(rows, None), f"a Pair of 2.*{FUNCTION}"),
    "number": (lambda _: 3, "a value of type int"),
    "nothing": (lambda _: None, "a value of type NoneType"),
    "array": (lambda rows: rows.detach().numpy(), "a value of type ndarray"),
    "class": (lambda rows: rows.argmax(1), r"of shape \(1,\).*declare it"),
    "one output": (lambda rows: rows[:, 0], r"of shape \(1,\).*declare it"),
    "flat": (lambda rows: rows.flatten(), rf"of shape \(5,\).*{FUNCTION}"),
    "no output": (lambda rows: rows[:, :0], r"of shape \(1, 0\)"),
    "maps": (lambda rows: rows[:, :, None, None], r"of shape \(1, 5, 1, 1\)"),
    "complex": (lambda rows: torch.complex(rows, rows), f"a tensor of complex64.*{DENSE}"),
    "narrow": (lambda rows: rows.to(torch.float8_e4m3fn), f"a tensor of float8_e4m3fn.*{DENSE}"),
    "sparse": (lambda rows: rows.to_sparse(), f"a sparse_coo tensor of float32.*{DENSE}"),
    "meta": (lambda rows: rows.to("meta"), "a meta tensor of float32"),
    "NaN": (lambda rows: rows * torch.nan, "NaN or infinite class scores"),
    "one NaN": (lambda rows: rows.index_fill(1, torch.tensor([4]), torch.nan), "NaN or infinite class scores"),
    "infinite": (lambda rows: rows + torch.inf, "NaN or infinite class scores"),
    "raises": (lambda _: 1 / 0, "cannot be run on an input of 3x64x64: ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_row_of_scores_is_described_in_one_line(kind: str) -> None:
    last, message = REFUSED[kind]
    net = networks.model(Returning(last))
    for use in (lambda: explained(last), lambda: net.predict(networks.noise())):
        with pytest.raises(ModelError, match=message) as caught:
            use()
        assert "\n" not in str(caught.value)


def test_a_row_for_each_image_of_a_batch() -> None:
    with pytest.raises(ModelError, match=r"of shape \(1, 5\) for \d+ images.*run one image at a time"):
        explained(lambda rows: rows[:1], "rise", masks=20)


def test_narrower_and_wider_scores_are_read_as_float32() -> None:
    plain = explained(lambda rows: rows)
    for last in (Tensor.half, Tensor.double, Tensor.bfloat16):
        found = explained(last)
        assert found.values.dtype is torch.float32
        assert found.target.index == plain.target.index
        assert float((found.values - plain.values).abs().max() / plain.values.abs().max()) < 0.02


def test_integers_are_scores_of_a_black_box() -> None:
    found = explained(lambda rows: (rows * 1000).long(), "occlusion", window=16, stride=16)
    assert found.values.any()
    with pytest.raises(xaihub.XaihubError, match="needs gradients"):
        explained(lambda rows: (rows * 1000).long())


def test_a_network_that_cannot_be_used_costs_no_other_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(
        "from tests import networks\nfrom tests.test_returned import REFUSED, Returning\n"
        "def good(): return networks.model(Returning(lambda rows: rows))\n"
        + "".join(f"def bad{n}(): return networks.model(Returning(REFUSED[{kind!r}][0]))\n"
                  for n, kind in enumerate(REFUSED))
    )  # fmt: skip
    models = ["good", *(f"bad{number}" for number in range(len(REFUSED)))]
    words = [word for name in models for word in ("-m", f"model.py:{name}")]
    done = CliRunner().invoke(cli, ["explain", *words, "-e", "saliency", "-q", "-o", "out"], prog_name="xaihub")
    assert done.exit_code == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == len(REFUSED)
    assert "unexpected" not in done.stderr
    assert len(list(Path("out").glob("*.png"))) == 1


class Two(nn.Module):
    """Two networks side by side, as in a Siamese or an auxiliary head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = networks.Net(), networks.Net()

    def forward(self, inputs: Tensor) -> Any:
        return {"main": (self.one(inputs), {"aux": self.other(inputs)}), "count": 3}


def test_a_function_reaches_into_any_structure() -> None:
    def aux(outputs: Any) -> Tensor:
        return outputs["main"][1]["aux"][:, 2]

    image = torch.rand(64, 64, 3).numpy()
    found = xaihub.explain(image, model=networks.model(Two), target=aux, explainer="saliency")
    alone = xaihub.explain(image, model=networks.model(Two().other), target="2", explainer="saliency")
    assert found.target.name == "aux"
    assert torch.allclose(found.values, alone.values)
