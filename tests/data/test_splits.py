"""Splits of clouds whose data set has none: stratified by class, and by a hash of their names."""

import pytest
import torch

from pcattn.data import hash_split, stratified_split


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


class TestHashSplit:
    NAMES = tuple(f"cloud_{index}.ply" for index in range(50))

    def test_numbers_of_reference(self) -> None:
        """Test clouds of released results, which another choice would move to training."""
        names = self.NAMES[:10]
        chosen = [name for name, is_test in zip(names, hash_split(names, 0.2, 0), strict=True) if is_test]
        assert chosen == ["cloud_1.ply", "cloud_5.ply"]

    @pytest.mark.parametrize(("number", "fraction", "expected"), [(50, 0.2, 10), (2, 0.1, 1), (3, 0.9, 2), (1, 0.5, 0)])
    def test_shares(self, number: int, fraction: float, expected: int) -> None:
        assert sum(hash_split(self.NAMES[:number], fraction, 0)) == expected

    def test_none(self) -> None:
        assert hash_split([], 0.2, 0) == []
        assert hash_split(["a", "b"], 0, 0) == [False, False]

    def test_depends_on_names_and_seed_alone(self) -> None:
        split = dict(zip(self.NAMES, hash_split(self.NAMES, 0.2, 0), strict=True))
        assert dict(zip(self.NAMES[::-1], hash_split(self.NAMES[::-1], 0.2, 0), strict=True)) == split
        assert hash_split(self.NAMES, 0.2, 1) != list(split.values())
