"""Every attention by name in a network, attentions of users by import path, and what the README promises."""

import re
from pathlib import Path

import pytest
import torch

import pcattn.attention
from pcattn.attention import ATTENTION, build_attention, layer_kwargs
from pcattn.models import PCTBackbone, PCTClassifier

README = Path(pcattn.attention.__file__).with_name("README.md")


@pytest.mark.parametrize("num_points", [64, 200])
@pytest.mark.parametrize("variant", ["spct", "pct"])
@pytest.mark.parametrize("attention", ATTENTION)
def test_classifier_trains(attention, variant, num_points):
    model = PCTClassifier(5, variant=variant, attention=attention, dim=32, out_dim=64)
    logits = model(torch.randn(2, num_points, 3))
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("attention", ATTENTION)
def test_tokens_follow_the_points(attention):
    backbone = PCTBackbone("spct", attention=attention, dim=16, out_dim=32).double().eval()
    pos, order = torch.randn(2, 70, 3, dtype=torch.float64), torch.randperm(70)
    torch.testing.assert_close(backbone(pos[:, order])[1], backbone(pos)[1][:, order])


def test_dilation_per_layer():
    model = PCTClassifier(
        5, "spct", "neighborhood", {"k": 4, "dilation": [1, 2, 1, 8], "dilation_mode": "class"}, dim=16, out_dim=32
    )
    assert [layer.core.dilation for layer in model.backbone.layers] == [1, 2, 1, 8]
    model(torch.randn(2, 64, 3)).sum().backward()
    with pytest.raises(ValueError, match=r"dilation <= floor\(N / k\) = 6 .* but got dilation=8"):
        model(torch.randn(2, 24, 3))


def test_layer_kwargs_of_another_length():
    with pytest.raises(ValueError, match="a list of 4 \\(one per layer\\), but got 3"):
        layer_kwargs({"dilation": [1, 2, 3]}, 4)


def test_the_example_of_the_readme_works(tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "my_attention.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    path = re.search(r"attention: (\S+MeanAttention)", README.read_text())
    model = PCTClassifier(5, "spct", path[1], {"k": [8, 8, 16, 16]}, dim=16, out_dim=32)
    model(torch.randn(2, 64, 3)).sum().backward()
    assert [layer.core.k for layer in model.backbone.layers] == [8, 8, 16, 16]


def test_every_class_is_exported():
    assert {cls.__name__ for cls in ATTENTION.values()} <= set(pcattn.attention.__all__)


def test_the_readme_names_every_mechanism_and_argument():
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)$", README.read_text(), re.MULTILINE))
    assert set(rows) == set(ATTENTION)
    for name, cls in ATTENTION.items():
        arguments = list(cls.__init__.__annotations__)[1:-1]
        assert all(f"`{argument}`" in rows[name] for argument in arguments)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("neigborhood", {}, "did you mean 'neighborhood'"),
        ("axial", {"heads": 2}, "expected arguments among: .*num_groups"),
        ("no_such_module.Attention", {}, "cannot be imported"),
        ("pcattn.attention.NoSuchClass", {}, "cannot be imported"),
    ],
)
def test_exceptions(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build_attention(name, 16, **kwargs)
