"""Every transform by its name: that it repeats, leaves its input, and refuses bad arguments."""

from collections.abc import Iterator

import pytest
import torch

from pcattn.data import PointBatch
from pcattn.transforms import TRANSFORMS, Jitter, Rotate, build_transforms
from tests.transforms.batches import generator, make_batch


def tensors(batch: PointBatch) -> list[torch.Tensor]:
    return [field for field in batch if isinstance(field, torch.Tensor)]


@pytest.fixture
def registered() -> Iterator[str]:
    @TRANSFORMS.register("stretch")
    class Stretch:
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def __call__(self, batch: PointBatch, generator: torch.Generator) -> PointBatch:
            return batch._replace(pos=batch.pos * self.factor)

    yield "stretch"
    del TRANSFORMS["stretch"]


@pytest.mark.parametrize("name", TRANSFORMS)
class TestEveryTransform:
    def test_repeats_and_leaves_its_input(self, name: str) -> None:
        batch = make_batch(per_point=name != "point_mixup")
        before = [tensor.clone() for tensor in tensors(batch)]
        transform = TRANSFORMS[name]()
        state = torch.get_rng_state()
        first, second, other = (transform(batch, generator(seed)) for seed in (3, 3, 5))
        assert all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(second), strict=True))
        assert any(not torch.equal(a, b) for a, b in zip(tensors(first), tensors(other), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(tensors(batch), before, strict=True))
        untouched = ("scale", "translate", "rotate", "rotate_so3", "flip", "jitter")
        assert name not in untouched or torch.equal(first.features, batch.features)  # colors do not turn
        assert first.pos.shape == batch.pos.shape
        assert first.pos.dtype == batch.pos.dtype
        assert torch.equal(state, torch.get_rng_state())  # of the given generator alone

    def test_every_cloud_has_numbers_of_its_own(self, name: str) -> None:
        batch = make_batch(num_points=20)
        changed = TRANSFORMS[name]()(batch._replace(pos=batch.pos + torch.arange(6).view(-1, 1, 1)), generator(3))
        moves = torch.cat((changed.pos - batch.pos, changed.normals - batch.normals), dim=2)
        assert not all(torch.equal(moves[0], other) for other in moves[1:])


class TestBuild:
    def test_by_name_in_order(self) -> None:
        steps = build_transforms([{"rotate": {"axis": "x"}}, {"jitter": None}])
        assert steps == [Rotate("x"), Jitter()]
        assert build_transforms(None) == []

    def test_a_registered_transform(self, registered: str) -> None:
        (transform,) = build_transforms([{registered: {"factor": 2.0}}])
        batch = make_batch()
        assert torch.equal(transform(batch, generator(0)).pos, 2 * batch.pos)

    @pytest.mark.parametrize(
        ("steps", "message"),
        [
            ([{"scle": {}}], "did you mean 'scale'"),
            ([{"scale": {}, "jitter": {}}], "one {name: arguments}"),
            ([{"scale": {"lo": 1}}], "low, high"),
            ([{"scale": {"low": 2.0, "high": 1.0}}], "low <= high"),
            ([{"dropout": {"max_ratio": 1.0}}], "max_ratio"),
            ([{"rotate": {"axis": "w"}}], "axis"),
            ([{"jitter": {"std": -1}}], "std"),
            ([{"translate": {"max_offset": -1}}], "max_offset"),
            ([{"flip": {"axes": "xx"}}], "axes in flip"),
            ([{"flip": {"probability": 2}}], "probability in flip"),
            ([{"feature_dropout": {"probability": -0.1}}], "probability in feature_dropout"),
            ([{"point_mixup": {"concentration": 0}}], "concentration in point_mixup"),
            ([{"point_cutmix": {"kind": "K"}}], "kind in point_cutmix to be r or k"),
            ([{"rsmix": {"probability": float("nan")}}], "probability in rsmix"),
        ],
    )
    def test_bad_steps(self, steps: list, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            build_transforms(steps)
