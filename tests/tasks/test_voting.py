"""Views of a cloud, the mean of their predictions, and the metrics of votes."""

from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn

from pcattn.data import PointBatch
from pcattn.inference.model import Model
from pcattn.tasks import Classification, PartSegmentation
from pcattn.tasks.voting import average_votes, draw_views, resample, view_scales


def make_cloud(num_points: int = 20, index: int = 3) -> PointBatch:
    """A complete cloud; the label of a point is its number, and so is its feature."""
    number = torch.arange(num_points)
    return PointBatch(
        torch.randn(1, num_points, 3),
        torch.randn(1, num_points, 3),
        number[None],
        torch.tensor([2]),
        torch.tensor([index]),
        0,
        number[None, :, None].float(),
        number[None],
    )


class TestResample:
    def test_the_first_view_is_the_usual_one(self) -> None:
        cloud, own = make_cloud(), torch.tensor([5, 1, 8])
        views = resample(cloud, own, 4)
        assert views.pos.shape == (4, 3, 3)
        assert torch.equal(views.pos[0], cloud.pos[0, own])
        assert torch.equal(views.point_indices[0], own)

    def test_further_views_are_resampled_and_scaled(self) -> None:
        """By 0.7, 0.8, ..., 1.4 (PCT section 4.4), over and over."""
        cloud = make_cloud()
        views = resample(cloud, torch.arange(12), 11)
        for vote in range(10):
            points = views.point_indices[1 + vote]
            assert len(points.unique()) == 12
            torch.testing.assert_close(views.pos[1 + vote], cloud.pos[0, points] * (0.7 + 0.1 * (vote % 8)))
            assert torch.equal(views.normals[1 + vote], cloud.normals[0, points])
            assert torch.equal(views.label[1 + vote], points)
            assert torch.equal(views.features[1 + vote, :, 0], points.float())
        assert len({tuple(points.tolist()) for points in views.point_indices}) == 11
        assert views.category.tolist() == [2] * 11

    def test_a_function_of_the_cloud_alone(self) -> None:
        cloud, own = make_cloud(), torch.arange(6)
        first = resample(cloud, own, 5)
        assert torch.equal(resample(cloud, own, 5).pos, first.pos)
        assert torch.equal(resample(cloud, own, 3).pos, first.pos[:3])
        other = resample(cloud._replace(indices=torch.tensor([4])), own, 5)
        assert not torch.equal(other.point_indices[1:], first.point_indices[1:])

    def test_clouds_with_fewer_points_than_a_view(self) -> None:
        views = resample(make_cloud(5), torch.tensor([0, 1, 2, 3, 4, 4, 1]), 3)
        assert all(set(points.tolist()) == set(range(5)) for points in views.point_indices)


class TestDrawViews:
    def test_a_point_is_drawn_once_per_view(self) -> None:
        views = draw_views(100, 32, 4, seed=0)
        assert views.shape == (4, 32)
        assert all(len(set(view.tolist())) == 32 for view in views)
        assert torch.equal(draw_views(100, 32, 2, seed=0), views[:2])

    def test_small_clouds_are_repeated(self) -> None:
        assert draw_views(3, 7, 1, seed=0).tolist() == [[0, 1, 2, 0, 1, 2, 0]]
        assert draw_views(7, 7, 1, seed=0).tolist() == [list(range(7))]
        assert all(set(view.tolist()) == {0, 1, 2} for view in draw_views(3, 7, 5, seed=0))

    def test_few_points_of_many(self) -> None:
        """Without a permutation of all of them, which would take 400 MB here."""
        views = draw_views(50_000_000, 1000, 3, seed=0)
        assert all(len(view.unique()) == 1000 for view in views)
        assert 0 <= int(views.min()) < 100_000
        assert 49_900_000 < int(views.max()) < 50_000_000
        assert torch.equal(views, draw_views(50_000_000, 1000, 3, seed=0))
        assert not torch.equal(views, draw_views(50_000_000, 1000, 3, seed=1))


def test_votes_on_a_point_are_averaged() -> None:
    """By hand: the second of two points is in three of four places."""
    probabilities = torch.tensor([[[0.9, 0.1], [0.2, 0.8]], [[0.4, 0.6], [0.3, 0.7]]])
    drawn, mean = average_votes(torch.tensor([[0, 1], [1, 1]]), probabilities)
    assert drawn.tolist() == [0, 1]
    torch.testing.assert_close(mean, torch.tensor([[0.9, 0.1], [0.3, 0.7]]))


class TestClassification:
    def test_votes_have_their_own_line(self) -> None:
        task = Classification(3, variant="spct", network_kwargs={"dim": 8, "depth": 1, "out_dim": 16}, votes=2)
        clouds = {index: make_cloud(index=index)._replace(label=torch.tensor([1]), category=None) for index in range(4)}
        task.trainer = SimpleNamespace(
            state=SimpleNamespace(fn=TrainerFn.TESTING),
            datamodule=SimpleNamespace(complete_cloud=lambda split, index: clouds[index]),
        )

        def answer(pos: Tensor, features: Tensor | None = None) -> Tensor:
            """A batch is classified right; of the two views of one cloud, the second is clearly wrong."""
            right = torch.eye(3)[torch.ones(len(pos), dtype=torch.long)]
            return right if len(pos) == 4 else torch.stack((right[0], torch.tensor([9.0, 0, 0])))

        task.forward = answer
        batch = PointBatch(
            torch.cat([cloud.pos[:, :10] for cloud in clouds.values()]),
            None,
            torch.ones(4, dtype=torch.long),
            None,
            torch.arange(4),
            0,
            None,
            torch.arange(10).expand(4, -1),
        )
        task.test_step(batch, 0)
        metrics = {name: float(value) for name, value in task.compute_metrics("test").items() if "loss" not in name}
        assert metrics == {"test/oa": 1, "test/macc": 1, "test/votes_2/oa": 0, "test/votes_2/macc": 0}
        lines = task.report("test").splitlines()
        assert lines[-2] == "test: overall accuracy 1.0000 (4 of 4), mean class accuracy 1.0000"
        assert lines[-1] == "test, mean of 2 votes: overall accuracy 0.0000, mean class accuracy 0.0000"

    def test_no_vote(self) -> None:
        with pytest.raises(ValueError, match="votes >= 1, but got 0"):
            Classification(3, votes=0)


class Coordinates(nn.Module):
    """Logits of four parts that depend on positions and their scale."""

    def forward(self, pos: Tensor, category: Tensor, features: Tensor | None = None) -> Tensor:
        return torch.cat((pos, pos.square()[..., :1]), dim=2)


class TestPartSegmentation:
    """Votes and all points are evaluated with the predictions that users of the network get."""

    PARTS: ClassVar = [[0, 1], [2, 3]]

    @pytest.mark.parametrize("votes", [1, 3])
    def test_same_predictions_as_the_model(self, votes: int) -> None:
        task = PartSegmentation(self.PARTS, network_kwargs={"dim": 8, "depth": 1}, votes=votes, all_points=True).eval()
        task.network = Coordinates()
        data = {"num_points": 16, "preprocessing": {"features": [], "normalize": "none", "up_axis": "z"}}
        pos, seed = torch.randn(1, 40, 3), 7
        predicted = Model(task, data).segment(pos[0], 1, votes, seed).labels
        assert len(set(predicted.tolist())) == 2
        label, category, index = torch.from_numpy(predicted)[None], torch.tensor([1]), torch.tensor([seed])
        cloud = PointBatch(pos, None, label, category, index, 0, None, torch.arange(40)[None])
        views = draw_views(40, 16, votes, seed)
        batch = cloud._replace(
            pos=pos[0][views] * view_scales(votes)[:, None, None],
            category=category.expand(votes),
            point_indices=views,
        )
        with torch.no_grad():
            task.update_voted_metrics(cloud, views[0], batch, task.predictions(task.logits(batch), 1))
        assert task.variants[-1] == (votes, True)
        assert task.variant_ious[-1].compute().instance == 1
