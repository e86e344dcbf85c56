"""Neighbor lists and pencils of `Geometry`."""

import pytest
import torch

from pcattn.attention import Geometry
from pcattn.ops import knn
from tests.attention.attention_cases import grid_positions


def counting_search():
    calls = []

    def search(query, support, k):
        calls.append(k)
        return knn(query, support, k)

    return search, calls


def test_searches_once():
    search, calls = counting_search()
    geometry = Geometry(torch.randn(2, 30, 3), search)
    for _ in range(3):
        geometry.neighbors(4)
        geometry.neighbors(4, 1, "class")
        geometry.offsets(4)
    assert calls == [4]
    assert geometry.pencils(0, 3) is geometry.pencils(0, 3)


def test_gradients_of_positions_after_use_without_gradients():
    """An adversarial attack does this: it first predicts the original cloud."""
    pos = torch.randn(1, 12, 3, requires_grad=True)
    geometry = Geometry(pos)
    with torch.no_grad():
        without = geometry.offsets(4)
    torch.testing.assert_close(geometry.offsets(4), without)
    geometry.offsets(4).square().sum().backward()
    assert bool(pos.grad.any())


def test_a_point_is_first_among_its_copies():
    pos = torch.randn(2, 5, 3).repeat(1, 8, 1)
    for dilation, mode in ((1, "rank"), (3, "rank"), (3, "class")):
        neighbors = Geometry(pos).neighbors(6, dilation, mode)
        assert (neighbors[..., 0] == torch.arange(40)).all()
        assert (neighbors.sort(dim=-1).values.diff(dim=-1) > 0).all()  # no point twice


@pytest.mark.parametrize("dilation", [1, 2, 3, 6])
def test_rank_keeps_every_nth_of_the_nearest(dilation):
    pos = torch.randn(2, 30, 3)
    expected = knn(pos, pos, 5 * dilation).indices[..., ::dilation]
    assert (Geometry(pos).neighbors(5, dilation) == expected).all()


def test_rank_in_blocks(monkeypatch):
    pos = torch.randn(2, 30, 3)
    expected = Geometry(pos).neighbors(5, 3)
    monkeypatch.setattr("pcattn.attention.geometry._BLOCK_ENTRIES", 100)
    assert (Geometry(pos).neighbors(5, 3) == expected).all()


@pytest.mark.parametrize("dilation", [2, 3, 4, 5])
def test_class_takes_the_nearest_points_of_a_class(dilation):
    pos = torch.randn(2, 23, 3)
    neighbors = Geometry(pos).neighbors(4, dilation, "class")
    for b in range(2):
        rank = pos[b, :, 0].argsort().argsort()  # the first coordinates differ
        for i in range(23):
            own = torch.nonzero(rank % dilation == rank[i] % dilation)[:, 0]
            nearest = own[(pos[b, own] - pos[b, i]).norm(dim=-1).argsort()[:4]]
            assert neighbors[b, i].tolist() == nearest.tolist()


@pytest.mark.parametrize("mode", ["rank", "class"])
def test_permutation_equivariance(mode):
    pos, order = torch.randn(2, 30, 3), torch.randperm(30)
    neighbors = Geometry(pos).neighbors(4, 3, mode)
    assert (order[Geometry(pos[:, order]).neighbors(4, 3, mode)] == neighbors[:, order]).all()


@pytest.mark.parametrize(("schedule", "reached"), [([1, 1, 1, 1], 9), ([1, 3, 9, 27], 81)])
def test_receptive_field_of_four_layers(schedule, reached):
    geometry = Geometry(grid_positions(243)[None])
    seen = {121}
    for dilation in schedule:
        lists = geometry.neighbors(3, dilation, "class")[0]
        seen = {int(j) for i in seen for j in lists[i]}
    assert len(seen) == reached


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((31,), "1 <= k <= 30"),
        ((0,), "1 <= k <= 30"),
        ((7, 5), "1 <= dilation <= floor\\(N / k\\) = 4 for N=30 points and k=7, but got dilation=5"),
        ((7, 0), "1 <= dilation"),
        ((7, 2, "spiral"), "dilation_mode to be one of rank, class"),
    ],
)
def test_exceptions(arguments, message):
    with pytest.raises(ValueError, match=message):
        Geometry(torch.randn(1, 30, 3)).neighbors(*arguments)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_pencils_of_a_grid(axis):
    pos = grid_positions(3, 4, 5)
    shuffle = torch.randperm(60)
    pencils = Geometry(0.5 * pos[shuffle].expand(2, -1, -1) - 3).pencils(axis, cell=0.5)
    assert (pencils.coordinate == pos[shuffle, axis]).all()
    others = [other for other in range(3) if other != axis]
    for label in pencils.label.unique():
        members = pencils.order[pencils.label == label]
        assert len((members // 60).unique()) == 1  # of one cloud
        assert len(pos[shuffle][members % 60][:, others].unique(dim=0)) == 1
        assert len(members) == (3, 4, 5)[axis]


def test_pencils_do_not_depend_on_scale_and_position():
    pos = torch.rand(1, 200, 3, dtype=torch.float64)
    first, second = Geometry(pos).pencils(0), Geometry(8 * pos + 1024).pencils(0)
    assert (first.order == second.order).all()
    torch.testing.assert_close(first.coordinate, second.coordinate)
