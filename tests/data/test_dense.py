"""Dense batches of a torch-geometric data set: values, draws, features, transforms, errors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.transforms import Compose, FixedPoints, NormalizeScale, RandomFlip, RandomJitter

from pcattn.data import DenseClouds, PointBatch, preprocess
from pcattn.ops import farthest_point_sample
from pcattn.utils.errors import DatasetError


class Clouds(InMemoryDataset):
    """Three clouds in the manner of torch-geometric's ShapeNet: normals, parts and a category."""

    def __init__(self, sizes: tuple[int, ...] = (5, 5, 5), parts: bool = True) -> None:
        super().__init__(None)
        items = []
        for number, size in enumerate(sizes):
            item = Data(pos=torch.randn(size, 3), x=torch.randn(size, 3))
            item.y = torch.arange(size) if parts else torch.tensor([number])
            if parts:
                item.category = torch.tensor([10 + number])
            items.append(item)
        self._data, self.slices = self.collate(items)


class TestDenseClouds:
    def test_parts(self) -> None:
        dataset = Clouds()
        batch = DenseClouds(dataset, per_point=True, features=["normals"])[7, torch.tensor([2, 0])]
        assert torch.equal(batch.pos, torch.stack([dataset[2].pos, dataset[0].pos]))
        assert torch.equal(batch.normals, torch.stack([dataset[2].x, dataset[0].x]))
        assert torch.equal(batch.label, torch.arange(5).expand(2, -1))
        assert batch.category.tolist() == [12, 10]
        assert (batch.indices.tolist(), batch.seed) == ([2, 0], 7)

    def test_class_is_the_category_where_there_is_one(self) -> None:
        batch = DenseClouds(Clouds())[0, torch.tensor([1])]
        assert (batch.label.tolist(), batch.category, batch.normals) == ([11], None, None)
        assert DenseClouds(Clouds(parts=False))[0, torch.tensor([1])].label.tolist() == [1]

    def test_nothing_is_copied(self) -> None:
        dataset = Clouds()
        assert DenseClouds(dataset).pos.data_ptr() == dataset._data.pos.data_ptr()

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match="4 to 5: set num_points"):
            DenseClouds(Clouds((5, 4)))[0, torch.tensor([1])]
        with pytest.raises(ValueError, match="cloud 1 has none"):
            DenseClouds(Clouds((5, 0, 4)))
        with pytest.raises(ValueError, match="part label for every point"):
            DenseClouds(Clouds(parts=False), per_point=True)
        without = Clouds()
        del without._data.x
        with pytest.raises(ValueError, match="expected normals"):
            DenseClouds(without, features=["normals"])

    def test_data_sets_that_it_cannot_read(self) -> None:
        """Mistakes of who writes a data set of their own."""
        with pytest.raises(DatasetError, match=r"expected mine to be an InMemoryDataset .*, but got TensorDataset"):
            DenseClouds(TensorDataset(torch.zeros(3, 5, 3)), name="mine")
        points, one_hot, without = Clouds(parts=True), Clouds(parts=False), Clouds(parts=False)
        del points._data.category, without._data.y
        with pytest.raises(DatasetError, match=r"a class y for each of 3 clouds .*, but got 15 numbers: .* per_point"):
            DenseClouds(points)
        one_hot._data.y = torch.eye(3)
        with pytest.raises(DatasetError, match=r"a class y for each of 3 clouds in mine, but got 9 numbers$"):
            DenseClouds(one_hot, name="mine")
        with pytest.raises(DatasetError, match="expected y in mine, but its clouds have pos, x"):
            DenseClouds(without, name="mine")


SIZES = (9, 4, 30, 7)


def read(clouds: DenseClouds, indices: list[int], seed: int = 0) -> PointBatch:
    return clouds[seed, torch.tensor(indices)]


class TestSizesThatDiffer:
    @pytest.mark.parametrize("sampling", ["random", "first", "fps"])
    def test_points_keep_what_belongs_to_them(self, sampling: str) -> None:
        dataset = Clouds(SIZES)
        clouds = DenseClouds(dataset, per_point=True, features=["normals"]).sampled(7, sampling)
        batch = read(clouds, [2, 0, 1])
        for row, index in enumerate([2, 0, 1]):
            chosen = batch.point_indices[row]
            assert torch.equal(batch.pos[row], dataset[index].pos[chosen])
            assert torch.equal(batch.normals[row], dataset[index].x[chosen])
            assert torch.equal(batch.label[row], dataset[index].y[chosen])
        assert batch.category.tolist() == [12, 10, 11]

    @pytest.mark.parametrize("sampling", ["random", "first", "fps"])
    def test_no_point_twice_where_there_are_enough_and_all_where_not(self, sampling: str) -> None:
        drawn = read(DenseClouds(Clouds(SIZES)).sampled(7, sampling), [0, 1, 2, 3]).point_indices.tolist()
        assert [len(set(row)) for row in drawn] == [7, 4, 7, 7]
        assert set(drawn[1]) == {0, 1, 2, 3}

    def test_random_covers_all_points_alike(self) -> None:
        clouds = DenseClouds(Clouds((1000, 3))).sampled(500)
        counts = torch.stack([read(clouds, [0], seed).point_indices[0].bincount(minlength=1000) for seed in range(200)])
        assert counts.max() == 1
        assert 60 < counts.sum(dim=0).min() < counts.sum(dim=0).max() < 140  # binomial, 100 +- 7

    def test_training_draws_anew(self) -> None:
        clouds = DenseClouds(Clouds((100, 50))).sampled(20)
        first, other, again = (read(clouds, [0], seed).point_indices for seed in (1, 2, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert len({tuple(read(clouds, [0, 0], 1).point_indices[row].tolist()) for row in (0, 1)}) == 1

    @pytest.mark.parametrize("sampling", ["random", "fps"])
    def test_evaluation_is_a_function_of_the_cloud_alone(self, sampling: str) -> None:
        clouds = DenseClouds(Clouds((100, 50, 70, 8))).sampled(20, sampling, seed=2)
        together = read(clouds, [0, 1, 2, 3], seed=5)
        for index in range(4):
            fresh = DenseClouds(Clouds((100, 50, 70, 8))).sampled(20, sampling, seed=2)
            if sampling == "random":  # the clouds differ, their sizes do not
                assert torch.equal(read(fresh, [3, index]).point_indices[1], together.point_indices[index])
            assert torch.equal(read(clouds, [3, index]).pos[1], together.pos[index])
        assert sampling == "fps" or not torch.equal(
            read(clouds.sampled(20, "random", seed=3), [0]).pos, together.pos[:1]
        )

    def test_farthest_points_are_those_of_ops(self) -> None:
        dataset = Clouds((50, 8))
        chosen = read(DenseClouds(dataset).sampled(10, "fps"), [0]).point_indices
        assert torch.equal(chosen, farthest_point_sample(dataset[0].pos[None], 10))

    def test_the_complete_cloud(self) -> None:
        dataset = Clouds(SIZES)
        cloud = DenseClouds(dataset, per_point=True, features=["normals"]).cloud(2)
        assert torch.equal(cloud.pos[0], dataset[2].pos)
        assert torch.equal(cloud.normals[0], dataset[2].x)
        assert torch.equal(cloud.label[0], dataset[2].y)
        assert torch.equal(cloud.point_indices[0], torch.arange(30))

    def test_a_selection_of_a_data_set(self) -> None:
        dataset = Clouds(SIZES)
        batch = read(DenseClouds(dataset[[3, 1]]).sampled(4, "first"), [0, 1])
        assert torch.equal(batch.pos, torch.stack([dataset[3].pos[:4], dataset[1].pos[:4]]))


class TestFeatures:
    def make(self) -> Clouds:
        dataset = Clouds((5, 8))
        dataset._data.x = torch.arange(13 * 7.0).view(13, 7)
        dataset.feature_names = ["red", "green", "blue", "nx", "intensity", "ny", "nz"]
        return dataset

    def test_are_chosen_by_name(self) -> None:
        dataset = self.make()
        features = ["intensity", "height", "normals", "color"]
        batch = DenseClouds(dataset, features=features, up_axis="y").cloud(1)
        x, height = dataset[1].x, dataset[1].pos[:, 1] - dataset[1].pos[:, 1].min()
        assert torch.equal(batch.normals[0], x[:, [3, 5, 6]])
        torch.testing.assert_close(batch.features[0], torch.cat((x[:, [4]], height[:, None], x[:, :3]), dim=1))
        assert torch.equal(batch.channels, torch.cat((batch.normals, batch.features), dim=2))
        alone = DenseClouds(dataset, features=["color"]).cloud(1)
        assert alone.normals is None
        assert torch.equal(alone.channels[0], x[:, :3])
        assert DenseClouds(dataset).cloud(1).channels is None

    @pytest.mark.parametrize("normalize", ["sphere", "box", "none"])
    @pytest.mark.parametrize("normals", ["normals", "estimated_normals"])
    def test_what_is_read_is_what_preprocess_gives(self, normalize: str, normals: str) -> None:
        dataset = self.make()
        dataset._data.pos.mul_(40).add_(100)
        options = {"features": ["height", normals, "color"], "normalize": normalize, "up_axis": "x"}
        clouds = DenseClouds(dataset, **options)
        sampled = read(clouds.sampled(4), [1])
        pos, features = preprocess(dataset[1].pos, dataset[1].x, dataset.feature_names, **options)
        torch.testing.assert_close(clouds.cloud(1).pos[0], pos)
        torch.testing.assert_close(clouds.cloud(1).channels[0], features)
        torch.testing.assert_close(sampled.pos[0], pos[sampled.point_indices[0]])
        torch.testing.assert_close(sampled.channels[0], features[sampled.point_indices[0]])

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match=r"curvature among .* mine, but it has normals, colors, intensity"):
            DenseClouds(self.make(), features=["curvature"], name="mine")
        dataset = self.make()
        dataset.feature_names = ["red"]
        with pytest.raises(ValueError, match=r"expected x \(13, 1\)"):
            DenseClouds(dataset)


class TestTypes:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.float16])
    def test_batches_are_float32(self, dtype: torch.dtype) -> None:
        """Scanners store integers, and many libraries float64; networks compute in float32."""
        dataset, options = Clouds(), {"features": ["normals", "height"], "normalize": "sphere"}
        dataset._data.pos, dataset._data.x = (100 * dataset._data.pos).to(dtype), (100 * dataset._data.x).to(dtype)
        expected = Clouds()
        expected._data.pos, expected._data.x = dataset._data.pos.float(), dataset._data.x.float()
        batch, same = (DenseClouds(clouds, True, **options).cloud(1) for clouds in (dataset, expected))
        assert {batch.pos.dtype, batch.channels.dtype} == {torch.float32}
        torch.testing.assert_close(batch.pos, same.pos)
        torch.testing.assert_close(batch.channels, same.channels)

    def test_float64_far_from_the_origin_is_moved(self) -> None:
        dataset = Clouds()
        dataset._data.pos = dataset._data.pos.double() + 5e6
        pos = DenseClouds(dataset).cloud(0).pos[0]
        torch.testing.assert_close(pos, preprocess(dataset[0].pos, normalize="none")[0].float())

    def test_a_single_cloud(self) -> None:
        """torch-geometric stores it without slices."""
        dataset = Clouds((7,), parts=False)
        assert torch.equal(read(DenseClouds(dataset), [0]).pos[0], dataset[0].pos)


class TestTransforms:
    """Transforms of torch-geometric, which a data set applies whenever a cloud is read."""

    def clouds(self, transform: Callable, sizes: tuple[int, ...] = (20, 30, 40), **kwargs: Any) -> DenseClouds:
        torch.manual_seed(0)
        dataset = Clouds(sizes)
        dataset.transform = transform
        return DenseClouds(dataset, per_point=True, **kwargs)

    def test_clouds_are_those_of_the_data_set(self) -> None:
        clouds = self.clouds(NormalizeScale(), features=["normals"])
        for cloud in (clouds.cloud(1), clouds.sampled(30, "first")[0, torch.tensor([1])]):
            item = clouds.dataset[1]
            torch.testing.assert_close(cloud.pos[0], item.pos)
            assert torch.equal(cloud.normals[0], item.x)
            assert torch.equal(cloud.label[0], item.y)
            assert (cloud.indices.tolist(), cloud.category.tolist()) == ([1], [11])

    @pytest.mark.parametrize("sampling", ["random", "first", "fps"])
    def test_the_same_points_as_without(self, sampling: str) -> None:
        views = [self.clouds(transform).sampled(10, sampling, seed=1) for transform in (lambda data: data, None)]
        transformed, plain = (read(view, [2, 0]) for view in views)
        assert torch.equal(transformed.pos, plain.pos)
        assert torch.equal(transformed.point_indices, plain.point_indices)

    def test_training_draws_anew_and_repeats_by_its_seed(self) -> None:
        clouds = self.clouds(Compose([RandomJitter(0.1), RandomFlip(0), FixedPoints(12)])).sampled(8)
        assert clouds.draws_anew
        state = torch.get_rng_state()
        first, again, other = (read(clouds, [0, 1], seed) for seed in (3, 3, 4))
        assert torch.equal(first.pos, again.pos)
        assert not torch.equal(first.pos, other.pos)
        assert torch.equal(torch.get_rng_state(), state)  # the network's own random numbers are not disturbed

    def test_evaluation_depends_on_neither_seed_nor_batch(self) -> None:
        clouds = self.clouds(RandomJitter(0.1)).sampled(8, seed=1)
        assert not clouds.draws_anew
        expected = read(clouds, [2, 1], seed=5)
        assert torch.equal(read(clouds, [1], seed=9).pos[0], expected.pos[1])
        complete = clouds.cloud(1).pos[0]
        assert torch.equal(complete[expected.point_indices[1]], expected.pos[1])

    def test_results_are_normalized(self) -> None:
        pos = self.clouds(lambda data: Data(pos=data.pos * 50 + 9, y=data.y), normalize="sphere").cloud(2).pos[0]
        torch.testing.assert_close(pos.norm(dim=1).max(), torch.tensor(1.0))

    def test_what_it_may_not_return(self) -> None:
        clouds = self.clouds(lambda data: Data(pos=data.pos), name="mine")
        with pytest.raises(DatasetError, match="expected y in mine, but its clouds have pos"):
            clouds.cloud(0)
        with pytest.raises(DatasetError, match="equal size in mine, but got 20 to 30: set num_points"):
            read(self.clouds(NormalizeScale(), name="mine"), [0, 1])


class TenClouds(Clouds):
    """As a user's own data set: called with root and train, labeled by cloud."""

    def __init__(self, root: str, train: bool) -> None:
        super().__init__((6,) * 10, parts=False)
        self._data.y = torch.arange(10) % 2
