"""PCT's local aggregation against its equation and the released code."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pcattn.layers import LocalAggregation
from pcattn.ops import farthest_point_sample, group


@pytest.mark.parametrize("num_relative", [0, 3])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("every_point", [True, False])
def test_equals_its_equation(num_relative: int, training: bool, every_point: bool) -> None:
    """max over j of LBR(LBR([f_j - f_i, f_i])) without the first `num_relative` channels of f_i, and its gradients."""
    layer = LocalAggregation(5, 8, num_relative).double().train(training)
    features = torch.randn(2, 20, 5, dtype=torch.float64, requires_grad=True)
    centers = None if every_point else torch.randint(20, (2, 9))
    neighbors = torch.randint(20, (2, 20 if every_point else 9, 4))
    grouped = group(features, neighbors, centers)
    linear = layer.linear(torch.cat((grouped[..., :5], grouped[..., 5 + num_relative :]), dim=-1))
    hidden = torch.nn.functional.batch_norm(
        linear.flatten(0, 2), *statistics(layer, training), training=training
    ).relu()
    mapped = layer.second.linear(hidden)
    second = torch.nn.functional.batch_norm(mapped, *statistics(layer.second, training), training=training).relu()
    expected = second.view(*neighbors.shape, 8).amax(dim=2)
    actual = layer(features, centers, neighbors)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    leaves, cotangent = (features, layer.linear.weight, layer.second.linear.weight), torch.randn_like(expected)
    gradients = (torch.autograd.grad((out * cotangent).sum(), leaves) for out in (actual, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def statistics(layer: torch.nn.Module, training: bool) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return (None, None) if training else (layer.norm.running_mean, layer.norm.running_var)


def test_grouping_is_the_released_one(load_fixture: Callable[[str], dict[str, Tensor]]) -> None:
    """With identity weights, the input of the first normalization is the grouped tensor of the released code."""
    arrays = load_fixture("fps_group")
    layer = LocalAggregation(arrays["feat"].shape[2], arrays["grouped"].shape[3]).double().eval()
    torch.nn.init.eye_(layer.linear.weight)
    seen: dict[str, Tensor] = {}
    layer.norm.register_forward_pre_hook(lambda module, args: seen.update(grouped=args[0]))
    centers = farthest_point_sample(arrays["xyz"], arrays["fps_idx"].shape[1], rule="pointnet2")
    layer(arrays["feat"], centers, arrays["knn_idx"])
    grouped = seen["grouped"].view_as(arrays["grouped"])
    torch.testing.assert_close(grouped, arrays["grouped"], atol=1e-10, rtol=0)


def test_neighbors_out_of_range() -> None:
    layer, features, neighbors = LocalAggregation(3, 4), torch.randn(2, 20, 3), torch.full((2, 20, 2), 20)
    with pytest.raises(ValueError, match=r"expected neighbors in \[0, 20\), .* but got 20 \(cloud 0\)"):
        layer(features, None, neighbors)
