"""The border to dense batches: one indexed read, repeatable order, stratified validation."""

import pytest
import torch
from torch_geometric.data import Data, InMemoryDataset

from pcattn.datasets import DenseClouds, EpochSampler, stratified_split


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
        batch = DenseClouds(dataset, per_point=True, normals=True)[7, torch.tensor([2, 0])]
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
        with pytest.raises(ValueError, match="4 to 5"):
            DenseClouds(Clouds((5, 4)))
        with pytest.raises(ValueError, match="part label for every point"):
            DenseClouds(Clouds(parts=False), per_point=True)
        without = Clouds()
        del without._data.x
        with pytest.raises(ValueError, match="expected normals"):
            DenseClouds(without, normals=True)


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
    """As a user's own data set: called with root and train, labelled by cloud."""

    def __init__(self, root: str, train: bool) -> None:
        super().__init__((6,) * 10, parts=False)
        self._data.y = torch.arange(10) % 2
