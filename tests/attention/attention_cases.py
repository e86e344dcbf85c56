"""The mechanisms under test, points on grids, and helpers of several tests."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pcattn.ops import KNN, knn

#: Arguments to test each mechanism with: at least one line for each key of `ATTENTION`.
MECHANISMS: list[tuple[str, dict[str, Any]]] = [
    ("self", {}),
    ("self", {"tied": True, "num_heads": 2}),
    ("offset", {}),
    ("external", {}),
    ("multihead_external", {}),
    ("axial", {}),
    ("axial", {"gated": True, "axes": "yx"}),
    ("acmix", {}),
    ("polarized", {}),
    ("polarized", {"layout": "sequential", "variant": "released"}),
    ("neighborhood", {"k": 6}),
    ("neighborhood", {"k": 4, "dilation": 3, "bias": "none"}),
    ("neighborhood", {"k": 5, "dilation": 2, "dilation_mode": "class", "bias": "table"}),
]

#: Search in the maximum metric, in which balls are windows of an image.
knn_linf = partial(knn, metric="linf")

#: Mechanisms whose result does not change if every point is repeated.
INVARIANT_TO_COPIES = ("self", "offset", "external", "multihead_external", "polarized")


def randomize(module: nn.Module) -> nn.Module:
    """Randomize running statistics and all parameters that are initialized with zeros or ones."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and (tensor == tensor.flatten()[0]).all():
            tensor.uniform_(0.5, 1.5) if "var" in name or "weight" in name else tensor.normal_(0, 0.3)
    return module


def grid_positions(*sizes: int) -> Tensor:
    """Positions (n, 3) of the points of a grid, in row-major order, one unit apart."""
    axes = [torch.arange(size, dtype=torch.float64) for size in (*sizes, *[1] * (3 - len(sizes)))]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(-1, 3)


def window_search(height: int, width: int, size: int, dilation: int = 1) -> Callable[[Tensor, Tensor, int], KNN]:
    """A search that returns the windows of neighborhood attention on an image, which are shifted at the borders."""

    def start(i: int, length: int) -> int:
        members = range(i % dilation, length, dilation)
        return members[max(0, min(i // dilation - size // 2, len(members) - size))]

    def search(query: Tensor, support: Tensor, k: int) -> KNN:
        rows = []
        for i in range(height):
            for j in range(width):
                top, left = start(i, height), start(j, width)
                window = [(top + a * dilation) * width + left + b * dilation for a in range(size) for b in range(size)]
                rows.append(window)
        indices = torch.tensor(rows).expand(len(query), -1, -1)
        return KNN(torch.zeros(indices.shape), indices)

    return search


def load_norm(norm: nn.Module, arrays: dict[str, Tensor], prefix: str = "bn") -> None:
    """Set weight, bias and running statistics of a batch normalization from arrays of a fixture."""
    for name, key in (("weight", "gamma"), ("bias", "beta"), ("running_mean", "mean"), ("running_var", "var")):
        norm.get_buffer(name).copy_(arrays[f"{prefix}_{key}"]) if "running" in name else load_parameter(
            norm.get_parameter(name), arrays[f"{prefix}_{key}"]
        )


def load_parameter(parameter: Tensor, values: Tensor) -> None:
    """Copy values into a parameter."""
    with torch.no_grad():
        parameter.copy_(values.view_as(parameter))


def load_linear(linear: nn.Module, weight: Tensor, bias: Tensor | None = None) -> None:
    """Set weight and bias of a linear layer."""
    load_parameter(linear.get_parameter("weight"), weight)
    if bias is not None:
        load_parameter(linear.get_parameter("bias"), bias)


def assert_near(actual: Tensor, expected: Tensor, atol: float = 1e-10) -> None:
    """Equal within an absolute tolerance, without NaN."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)
