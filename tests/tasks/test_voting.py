"""Looks at a cloud for votes, predictions at all of its points, and what voting adds to a classifier's report."""

from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from pcattn.data import PointBatch
from pcattn.inference.model import Model, draw
from pcattn.tasks import Classification, PartSegmentation
from pcattn.tasks.voting import carry, draw_votes


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


class TestDrawVotes:
    def test_the_first_look_is_the_usual_one(self) -> None:
        cloud, own = make_cloud(), torch.tensor([5, 1, 8])
        looks = draw_votes(cloud, own, 4)
        assert looks.pos.shape == (4, 3, 3)
        assert torch.equal(looks.pos[0], cloud.pos[0, own])
        assert torch.equal(looks.point_indices[0], own)

    def test_the_others_are_resampled_and_scaled(self) -> None:
        """By 0.7, 0.8, ..., 1.4 (PCT section 4.4), over and over."""
        cloud = make_cloud()
        looks = draw_votes(cloud, torch.arange(12), 11)
        for vote in range(10):
            points = looks.point_indices[1 + vote]
            assert len(points.unique()) == 12
            torch.testing.assert_close(looks.pos[1 + vote], cloud.pos[0, points] * (0.7 + 0.1 * (vote % 8)))
            assert torch.equal(looks.normals[1 + vote], cloud.normals[0, points])
            assert torch.equal(looks.label[1 + vote], points)
            assert torch.equal(looks.features[1 + vote, :, 0], points.float())
        assert len({tuple(points.tolist()) for points in looks.point_indices}) == 11
        assert looks.category.tolist() == [2] * 11

    def test_a_function_of_the_cloud_alone(self) -> None:
        cloud, own = make_cloud(), torch.arange(6)
        first = draw_votes(cloud, own, 5)
        assert torch.equal(draw_votes(cloud, own, 5).pos, first.pos)
        assert torch.equal(draw_votes(cloud, own, 3).pos, first.pos[:3])
        other = draw_votes(cloud._replace(indices=torch.tensor([4])), own, 5)
        assert not torch.equal(other.point_indices[1:], first.point_indices[1:])

    def test_clouds_with_fewer_points_than_are_looked_at(self) -> None:
        looks = draw_votes(make_cloud(5), torch.tensor([0, 1, 2, 3, 4, 4, 1]), 3)
        assert all(set(points.tolist()) == set(range(5)) for points in looks.point_indices)


class TestCarry:
    def test_against_brute_force(self) -> None:
        """The mean over the looks at a point; elsewhere that of the three nearest points that were looked at."""
        cloud = make_cloud(60)
        looks = draw_votes(cloud, torch.arange(10), 3)
        found = torch.rand(3, 10, 4).softmax(dim=2)
        first, mean = carry(cloud, looks, found)
        for result, number in ((first, 1), (mean, 3)):
            points, values = looks.point_indices[:number].flatten(), found[:number].flatten(0, 1)
            places = sorted(set(points.tolist()))
            at_places = torch.stack([values[points == place].mean(dim=0) for place in places])
            expected = torch.zeros(60, 4)
            for i in range(60):
                distance = (cloud.pos[0, i] - cloud.pos[0, places]).square().sum(dim=1)
                nearest = distance.argsort()[:3]
                weight = 1 / distance[nearest]
                same = distance[nearest] == 0
                weight = same.float() if same.any() else weight / weight.sum()
                expected[i] = weight @ at_places[nearest]
            torch.testing.assert_close(result[0], expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(first[0, :10], found[0])  # what was looked at stays

    def test_one_look_at_all_points(self) -> None:
        cloud, found = make_cloud(6), torch.rand(1, 6, 2)
        first, mean = carry(cloud, draw_votes(cloud, torch.arange(6), 1), found)
        assert torch.equal(first, found)
        assert torch.equal(mean, found)


class TestClassification:
    def test_votes_are_a_line_of_their_own(self) -> None:
        task = Classification(3, variant="spct", network_kwargs={"dim": 8, "depth": 1, "out_dim": 16}, votes=2)
        clouds = {index: make_cloud(index=index)._replace(label=torch.tensor([1]), category=None) for index in range(4)}
        task.trainer = SimpleNamespace(
            state=SimpleNamespace(fn=TrainerFn.TESTING),
            datamodule=SimpleNamespace(complete_cloud=lambda split, index: clouds[index]),
        )

        def answer(pos: Tensor, features: Tensor | None) -> Tensor:
            """One look at a batch is right; of the two looks at one cloud, the second is surely wrong."""
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


class TestPartSegmentation:
    """What is judged at all points, and by votes, is the prediction that users get of the same network."""

    PARTS: ClassVar = [[0, 1], [2, 3]]

    def test_is_the_model_in_use(self) -> None:
        """The softmax is over the category's parts: a third point, nearer to the second, is of part 0 nevertheless."""
        network = {"dim": 8, "depth": 1, "out_dim": 16}
        task = PartSegmentation(self.PARTS, variant="spct", network_kwargs=network, all_points=True)
        pos = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0.52, 0, 0]]])
        answers = torch.tensor([[[2.0, 0, 10, 0], [0, 1, 0, 0]]])
        task.forward = lambda *_: answers
        model = Model(task, {"num_points": 2, "preprocessing": {"features": [], "normalize": "none", "up_axis": "z"}})
        seed = next(seed for seed in range(99) if draw(3, 2, 1, seed).tolist() == [[0, 1]])
        used = model.segment(pos[0], 0, seed=seed).labels
        cloud = PointBatch(
            pos,
            None,
            torch.from_numpy(used)[None],
            torch.tensor([0]),
            torch.tensor([0]),
            0,
            None,
            torch.arange(3)[None],
        )
        own = torch.tensor([0, 1])
        task.evaluate_looks(cloud, own, draw_votes(cloud, own, 1))
        assert used.tolist() == [0, 1, 0]
        assert task.look_ious[0].compute().instance == 1
