"""Estimated normals against those of shapes where they are known."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pcattn.data import estimate_normals, normals


def directions(count: int, seed: int = 0) -> Tensor:
    values = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=1)


def degrees(got: Tensor, expected: Tensor) -> Tensor:
    return torch.rad2deg(torch.acos((got * expected).sum(dim=-1).clamp(-1, 1)))


def box(count: int) -> tuple[Tensor, Tensor]:
    """Points on the faces of a 2 x 4 x 6 box about the origin, and their normals."""
    generator = torch.Generator().manual_seed(0)
    half = torch.tensor([1.0, 2.0, 3.0])
    pos = (2 * torch.rand(count, 3, generator=generator) - 1) * half
    axis = torch.arange(count) % 3
    sign = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    pos[torch.arange(count), axis] = sign * half[axis]
    return pos, torch.nn.functional.one_hot(axis, 3) * sign[:, None]


def test_sphere() -> None:
    expected = directions(2000)
    got = estimate_normals(torch.stack((expected, 3 * expected - 7)))
    assert got.shape == (2, 2000, 3)
    assert got.dtype == torch.float32
    for of_cloud in got:
        error = degrees(of_cloud, expected)
        assert error.mean() < 3
        assert error.max() < 15


def test_box() -> None:
    """Exact away from the edges, by sign as well; at the edges in between."""
    pos, expected = box(6000)
    got = estimate_normals(pos[None])[0]
    to_edge = (torch.tensor([1.0, 2.0, 3.0]) - pos.abs()).sort(dim=1).values[:, 1]
    inside = to_edge > 0.5
    assert inside.sum() > 1000
    assert degrees(got[inside], expected[inside]).max() < 0.1
    assert (degrees(got, expected) < 0.1).float().mean() > 0.7
    torch.testing.assert_close(got.norm(dim=1), torch.ones(6000))


def test_turns_with_the_cloud_wherever_it_lies() -> None:
    pos = box(600)[0].double()
    rotation = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0])
    got = estimate_normals((500 * pos @ rotation + 1e4)[None])[0]
    assert degrees(got, estimate_normals(pos[None])[0] @ rotation).max() < 1e-3


def test_large_clouds_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    pos = directions(300)[None]
    whole = estimate_normals(pos)
    monkeypatch.setattr(normals, "_CHUNK", 77)
    torch.testing.assert_close(estimate_normals(pos), whole)


@pytest.mark.parametrize("pos", [torch.zeros(1, 1, 3), torch.rand(2, 2, 3), torch.ones(1, 40, 3)])
def test_of_hardly_any_points(pos: Tensor) -> None:
    torch.testing.assert_close(estimate_normals(pos).norm(dim=2), torch.ones(pos.shape[:2]))


def test_errors() -> None:
    for shape in ((5, 3), (1, 5, 2), (1, 0, 3)):
        with pytest.raises(ValueError, match=r"expected pos \(B, N, 3\) with N >= 1, but got"):
            estimate_normals(torch.zeros(shape))
    with pytest.raises(ValueError, match="expected k >= 1, but got 0"):
        estimate_normals(torch.zeros(1, 5, 3), k=0)
