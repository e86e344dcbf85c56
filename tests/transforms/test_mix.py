"""PointMixup, PointCutMix and RSMix: which points come from where, and what the labels say of it."""

from itertools import permutations

import pytest
import torch

from pcattn.data import PointBatch
from pcattn.transforms import PointCutMix, PointMixup, RSMix, Translate
from pcattn.transforms.mix import assign, partners
from tests.transforms.batches import generator, make_batch

CUT_MIX = [PointCutMix("r", probability=1.0), PointCutMix("k", probability=1.0)]


def origin(out: PointBatch, batch: PointBatch) -> torch.Tensor:
    """(B, N), the cloud that each point of a cut mix was taken from."""
    same = (out.pos[:, :, None] == batch.pos.flatten(0, 1)).all(dim=3)  # (B, N, B * N)
    assert (same.sum(dim=2) == 1).all()
    return same.long().argmax(dim=2) // batch.pos.shape[1]


class TestPartners:
    def test_never_itself_and_everyone_once(self) -> None:
        chosen = partners(make_batch(batch=50, num_points=1), generator())
        assert sorted(chosen.tolist()) == list(range(50))
        assert (chosen != torch.arange(50)).all()

    def test_of_the_same_category(self) -> None:
        category = torch.randint(4, (50,), generator=generator())
        chosen = partners(make_batch(batch=50, num_points=1)._replace(category=category), generator())
        assert torch.equal(category[chosen], category)
        assert sorted(chosen.tolist()) == list(range(50))

    def test_a_single_cloud_is_its_own(self) -> None:
        assert partners(make_batch(batch=1), generator()).tolist() == [0]


class TestAssign:
    def test_is_a_permutation_near_the_optimum(self) -> None:
        """Against every permutation of six points, and of many points against the one they were made with."""
        pos, other = torch.rand(2, 20, 6, 3, generator=generator()).double()
        assigned = assign(pos, other, 64, generator())
        assert torch.equal(assigned.sort(dim=1).values, torch.arange(6).expand(20, -1))
        distance = (pos[:, :, None] - other[:, None]).square().sum(dim=3)
        every = torch.tensor(list(permutations(range(6))))  # (720, 6)
        best = distance[:, torch.arange(6), every].sum(dim=2).amin(dim=1)
        found = distance.gather(2, assigned[..., None]).sum(dim=(1, 2))
        assert ((found - best) / best).mean() < 0.1

    def test_improves_with_rounds_and_any_number_of_points(self) -> None:
        pos, other = torch.rand(2, 4, 101, 3, generator=generator()).double()

        def cost(rounds: int) -> float:
            found = assign(pos, other, rounds, generator())
            assert torch.equal(found.sort(dim=1).values, torch.arange(101).expand(4, -1))
            return float((pos - other.gather(1, found[..., None].expand(-1, -1, 3))).square().sum())

        assert cost(128) < cost(32) < cost(4) < cost(0)

    def test_one_point(self) -> None:
        assert assign(torch.zeros(2, 1, 3), torch.ones(2, 1, 3), 4, generator()).tolist() == [[0], [0]]


class TestPointMixup:
    def test_points_lie_between_their_pairs(self) -> None:
        batch = make_batch()
        out = PointMixup(1.0)(batch, generator())
        label, ratio = out.mixed_label[:, 1], out.mixed_weight[:, 1]
        assert torch.equal(out.mixed_label[:, 0], batch.label)
        assert (label != batch.label).all()
        torch.testing.assert_close(out.mixed_weight.sum(dim=1), torch.ones_like(ratio))
        assert ((ratio > 0) & (ratio <= 0.5)).all()
        # Undoing the interpolation gives the points of the other cloud, in another order.
        other = (out.pos - (1 - ratio[:, None, None]) * batch.pos) / ratio[:, None, None]
        distance = torch.cdist(other, batch.pos[label])
        torch.testing.assert_close(distance.amin(dim=2), torch.zeros_like(distance[..., 0]), atol=1e-5, rtol=0)
        assert all(row.unique().numel() == 200 for row in distance.argmin(dim=2))
        torch.testing.assert_close(out.normals.norm(dim=2), torch.ones_like(out.normals[..., 0]))

    def test_probability(self) -> None:
        batch = make_batch(batch=200, num_points=2)
        out = PointMixup(probability=0.3)(batch, generator())
        untouched = (out.pos == batch.pos).all(dim=(1, 2))
        assert torch.equal(untouched, out.mixed_weight[:, 1] == 0)
        assert untouched.double().mean() == pytest.approx(0.7, abs=0.1)

    def test_labels_of_points_are_refused(self) -> None:
        with pytest.raises(ValueError, match="between two parts is of neither"):
            PointMixup()(make_batch(per_point=True), generator())


class TestPointCutMix:
    @pytest.mark.parametrize("transform", CUT_MIX, ids=lambda transform: transform.kind)
    def test_shares_are_those_of_the_points(self, transform: PointCutMix) -> None:
        batch = make_batch()
        out = transform(batch, generator())
        source, own = origin(out, batch), torch.arange(6)[:, None]
        replaced = source != own
        assert torch.equal(torch.where(replaced, out.mixed_label[:, 1:], own), source)
        torch.testing.assert_close(out.mixed_weight[:, 1], replaced.double().mean(dim=1))
        torch.testing.assert_close(out.mixed_weight.sum(dim=1), torch.ones(6).double())
        assert (replaced.sum(dim=1) >= 1).all()
        for cloud in range(6):  # normals come with their points
            index = (out.pos[cloud, :, None] == batch.pos[source[cloud]]).all(dim=2).long().argmax(dim=1)
            assert torch.equal(out.normals[cloud], batch.normals[source[cloud], index])

    def test_k_replaces_a_neighborhood(self) -> None:
        batch = make_batch()
        replaced = origin(CUT_MIX[1](batch, generator()), batch) != torch.arange(6)[:, None]
        for cloud, mask in zip(batch.pos, replaced, strict=True):
            count, distance = int(mask.sum()), torch.cdist(cloud, cloud)
            nearest = distance.argsort(dim=1)[:, :count].sort(dim=1).values
            assert (nearest == mask.nonzero().flatten()).all(dim=1).any()

    @pytest.mark.parametrize("transform", [*CUT_MIX, RSMix(probability=1.0)])
    def test_parts_follow_their_points(self, transform: PointCutMix | RSMix) -> None:
        batch = make_batch(per_point=True)._replace(category=torch.tensor([0, 0, 0, 1, 1, 1]))
        out = transform(batch, generator())
        assert out.mixed_label is None
        assert torch.equal(out.normals, batch.normals.flatten(0, 1)[out.label])
        source = out.label // 200
        assert (source != torch.arange(6)[:, None]).any()
        assert torch.equal(batch.category[source], batch.category[:, None].expand_as(source))


class TestRSMix:
    def test_a_ball_moves_rigidly(self) -> None:
        batch = make_batch(per_point=True)._replace(normals=None)
        out = RSMix(probability=1.0)(batch, generator(1))
        moved = 0
        for cloud in range(6):
            replaced = out.label[cloud] // 200 != cloud
            assert torch.equal(out.pos[cloud, ~replaced], batch.pos[cloud, ~replaced])
            assert replaced.sum() <= 100
            shift = out.pos[cloud, replaced] - batch.pos.flatten(0, 1)[out.label[cloud, replaced]]
            torch.testing.assert_close(shift, shift[:1].expand_as(shift))
            moved += int(replaced.sum() > 1)
        assert moved >= 3

    def test_what_came_lay_in_a_ball_of_the_same_radius(self) -> None:
        batch = make_batch(per_point=True)._replace(normals=None)
        out = RSMix(probability=1.0)(batch, generator(1))
        checked = 0
        for cloud in range(6):
            replaced = out.label[cloud] // 200 != cloud
            taken = out.label[cloud, replaced]
            own, other = batch.pos[cloud], batch.pos[int(taken[0]) // 200]
            shift = out.pos[cloud, replaced][0] - batch.pos.flatten(0, 1)[taken[0]]
            # The one pair of points that the shift leads from and to.
            center, other_center = divmod(int((own[:, None] - other - shift).norm(dim=2).argmin()), 200)
            if replaced.sum() < 100:  # else the ball was cut short
                beyond = (own - own[center]).norm(dim=1)[~replaced].min()
                assert (other[taken % 200] - other[other_center]).norm(dim=1).max() < beyond
                checked += 1
        assert checked >= 3

    def test_what_gave_way_was_a_ball(self) -> None:
        batch = make_batch()
        out = RSMix(probability=1.0)(batch, generator(1))
        removed = (out.normals != batch.normals).any(dim=2)  # the center of the ball has the same place in both
        torch.testing.assert_close(out.mixed_weight[:, 1], removed.double().mean(dim=1))
        for cloud, mask in zip(batch.pos, removed, strict=True):
            nearest = torch.cdist(cloud, cloud).argsort(dim=1)[:, : int(mask.sum())].sort(dim=1).values
            assert (nearest == mask.nonzero().flatten()).all(dim=1).any()


def test_mixing_twice_keeps_all_classes() -> None:
    batch = make_batch()
    out = batch
    for transform in (PointMixup(1.0), Translate(), CUT_MIX[0]):
        out = transform(out, generator())
    assert out.mixed_label.shape == (6, 4)
    torch.testing.assert_close(out.mixed_weight.sum(dim=1), torch.ones(6).double())
