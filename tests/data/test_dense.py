"""The border to dense batches: one indexed read, repeatable order, stratified validation."""

import pytest
import torch
from torch.utils.data import TensorDataset
from torch_geometric.data import Data, InMemoryDataset

from pcattn.data import DenseClouds, EpochSampler, PointBatch, preprocess, stratified_split
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
        dataset = Clouds()
        dataset._data.pos = dataset._data.pos.long()
        with pytest.raises(ValueError, match=r"expected pos of mine to be floating point, but got torch\.int64"):
            DenseClouds(dataset, name="mine")
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
        with pytest.raises(DatasetError, match="expected pos and y in mine, but it has no y"):
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


class TestEpochSampler:
    def draw(self, epoch: int, **kwargs) -> list:
        sampler = EpochSampler(torch.arange(100, 110), batch_size=3, **{"seed": 0, "shuffle": True, **kwargs})
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        return [(seed, batch.tolist()) for seed, batch in batches]

    def test_is_a_function_of_seed_and_epoch(self) -> None:
        assert self.draw(2) == self.draw(2)
        assert self.draw(2) != self.draw(3)
        assert self.draw(2) != self.draw(2, seed=1)

    def test_every_batch_has_a_seed_of_its_own(self) -> None:
        seeds = [seed for epoch in range(20) for seed, _ in self.draw(epoch)]
        assert len(set(seeds)) == len(seeds) == 60

    def test_training_drops_the_incomplete_batch(self) -> None:
        drawn = [index for _, batch in self.draw(0) for index in batch]
        assert len(drawn) == len(set(drawn)) == 9

    def test_evaluation_is_complete_and_in_order(self) -> None:
        assert [index for _, batch in self.draw(4, shuffle=False) for index in batch] == list(range(100, 110))

    def test_fewer_clouds_than_a_batch(self) -> None:
        assert [len(batch) for _, batch in EpochSampler(torch.arange(2), 8, 0, shuffle=True)] == [2]

    @pytest.mark.parametrize("shuffle", [True, False])
    def test_processes_share_the_batches_of_one(self, shuffle: bool) -> None:
        shares = [self.draw(1, shuffle=shuffle, rank=rank, world_size=2) for rank in (0, 1)]
        alone = self.draw(1, shuffle=shuffle)
        assert shares[0] == alone[0::2][: len(shares[0])]
        assert shares[1] == alone[1::2]


class TestStratifiedSplit:
    def test_shares(self) -> None:
        labels = torch.arange(4).repeat_interleave(torch.tensor([100, 50, 3, 1]))
        train, val = stratified_split(labels, 0.1, seed=0)
        assert torch.equal(torch.cat((train, val)).sort().values, torch.arange(154))
        assert labels[val].bincount(minlength=4).tolist() == [10, 5, 1, 0]

    def test_seed(self) -> None:
        labels = torch.zeros(100, dtype=torch.long)
        assert torch.equal(stratified_split(labels, 0.2, 1)[1], stratified_split(labels, 0.2, 1)[1])
        assert not torch.equal(stratified_split(labels, 0.2, 1)[1], stratified_split(labels, 0.2, 2)[1])


class TenClouds(Clouds):
    """As a user's own data set: called with root and train, labeled by cloud."""

    def __init__(self, root: str, train: bool) -> None:
        super().__init__((6,) * 10, parts=False)
        self._data.y = torch.arange(10) % 2
