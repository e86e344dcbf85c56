"""The batches of an epoch: repeatable order, seeds, shares of several processes."""

import pytest
import torch

from pcattn.data import EpochSampler


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
