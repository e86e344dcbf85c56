"""Every transform on arbitrary batches: what it keeps, whatever it draws."""

from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcattn.data import PointBatch
from pcattn.transforms import TRANSFORMS, build_transforms, subsample
from pcattn.transforms.batch import Transform
from tests.transforms.batches import generator

BOUNDED = settings(max_examples=20, derandomize=True, deadline=None)

#: Arguments under which a transform does something to most clouds.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "feature_dropout": {"probability": 0.5, "per_point": True},
    "point_mixup": {"rounds": 4},
    "point_cutmix": {"probability": 1.0, "rounds": 4},
    "rsmix": {"probability": 1.0},
}
RIGID = ("translate", "rotate", "rotate_so3", "flip")
MIXING = ("point_mixup", "point_cutmix", "rsmix")


def build(name: str) -> Transform:
    return build_transforms([{name: ARGUMENTS.get(name)}])[0]


@st.composite
def batches(draw: st.DrawFn, per_point: bool | None = None) -> PointBatch:
    """Few clouds of few points, some of them equal. The first feature of every point is its number."""
    batch, num_points = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    shape = (batch, num_points, 3)
    elements = st.sampled_from([0.0, 1.0, -0.5]) | st.floats(-1, 1, width=32, allow_subnormal=False)
    pos = torch.from_numpy(draw(arrays.arrays(np.float32, shape, elements=elements)))
    normals = torch.nn.functional.normalize(pos + 2.0, dim=2)
    number = torch.arange(batch * num_points).view(batch, num_points)
    features = torch.stack((number.float(), number.float() % 2), dim=2)
    if per_point is None:
        per_point = draw(st.booleans())
    category = torch.tensor(draw(st.lists(st.integers(0, 1), min_size=batch, max_size=batch)))
    label = number if per_point else torch.arange(batch)
    return PointBatch(
        pos, normals, label, category if per_point else None, torch.arange(batch), 1, features, point_indices=number
    )


def copied(batch: PointBatch) -> PointBatch:
    return PointBatch(*(x.clone() if isinstance(x, torch.Tensor) else x for x in batch))


def assert_same(batch: PointBatch, other: PointBatch) -> None:
    for name, ours, theirs in zip(batch._fields, batch, other, strict=True):
        if isinstance(ours, torch.Tensor):
            assert torch.equal(ours, theirs), name
        else:
            assert ours == theirs, name


@pytest.mark.parametrize("name", TRANSFORMS)
@BOUNDED
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_all(name: str, data: st.DataObject, seed: int) -> None:
    """A function of batch and generator, which leaves the batch as it is: same shapes and types, finite, labels with
    their points."""
    batch = data.draw(batches(per_point=False if name == "point_mixup" else None))
    before, transform = copied(batch), build(name)
    out = transform(batch, generator(seed))
    assert_same(batch, before)
    assert_same(out, transform(batch, generator(seed)))
    for field, old, new in zip(batch._fields, batch, out, strict=True):
        if isinstance(old, torch.Tensor) and not (name in MIXING and field == "point_indices"):
            assert new.shape == old.shape, field
            assert new.dtype == old.dtype, field
            assert new.isfinite().all(), field
    assert torch.equal(out.indices, batch.indices)
    if batch.label.dim() == 2 and name != "feature_dropout":
        assert torch.equal(out.features[..., 0].long(), out.label)
    if name not in MIXING:
        assert torch.equal(out.point_indices, out.label if batch.label.dim() == 2 else out.point_indices)
        assert out.mixed_label is None
    elif batch.label.dim() == 1:
        torch.testing.assert_close(out.mixed_weight.sum(dim=1), torch.ones(len(batch.pos)))
        assert (out.mixed_weight >= 0).all()
        assert torch.equal(out.mixed_label[:, 0], batch.label)


@pytest.mark.parametrize("name", RIGID)
@BOUNDED
@given(batch=batches(), seed=st.integers(0, 2**32))
def test_rigid_ones_keep_distances_and_angles(name: str, batch: PointBatch, seed: int) -> None:
    out = build(name)(batch, generator(seed))
    for old, new in ((batch.pos, out.pos), (batch.normals, out.normals)):
        torch.testing.assert_close(*(torch.linalg.norm(x[:, :, None] - x[:, None], dim=3) for x in (new, old)))
    torch.testing.assert_close(out.normals.norm(dim=2), batch.normals.norm(dim=2))
    if name != "translate":
        torch.testing.assert_close(out.pos.norm(dim=2), batch.pos.norm(dim=2))
        torch.testing.assert_close((out.pos * out.normals).sum(dim=2), (batch.pos * batch.normals).sum(dim=2))


@BOUNDED
@given(batch=batches(), seed=st.integers(0, 2**32))
def test_scale_keeps_proportions(batch: PointBatch, seed: int) -> None:
    out = build("scale")(batch, generator(seed))
    assert (out.pos.abs() <= 1.5 * batch.pos.abs() + 1e-6).all()
    assert (out.pos.abs() >= batch.pos.abs() / 1.5 - 1e-6).all()
    assert torch.equal(out.pos.sign(), batch.pos.sign())


@pytest.mark.parametrize("name", ["dropout", "point_cutmix"])
@BOUNDED
@given(batch=batches(per_point=True), seed=st.integers(0, 2**32))
def test_points_are_those_that_were_there(name: str, batch: PointBatch, seed: int) -> None:
    """With everything that belongs to them."""
    out = build(name)(batch, generator(seed))
    number = out.label.flatten()
    for old, new in ((batch.pos, out.pos), (batch.normals, out.normals), (batch.features, out.features)):
        assert torch.equal(new.flatten(0, 1), old.flatten(0, 1)[number])


@BOUNDED
@given(batch=batches(per_point=True), data=st.data())
def test_subsample_chooses_points_once(batch: PointBatch, data: st.DataObject) -> None:
    wanted = data.draw(st.integers(1, batch.pos.shape[1]))
    out = subsample(batch, wanted, data.draw(st.none() | st.integers(0, 99).map(generator)))
    assert out.pos.shape == (len(batch.pos), wanted, 3)
    assert all(len(set(row)) == wanted for row in out.label.tolist())
    assert torch.equal(out.pos.flatten(0, 1), batch.pos.flatten(0, 1)[out.label.flatten()])
    assert torch.equal(out.features[..., 0].long(), out.label)
