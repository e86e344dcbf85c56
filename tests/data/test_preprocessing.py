"""Normalization of a raw cloud, by hand-computed values."""

import pytest
import torch

from pcattn.data import estimate_normals, preprocess
from pcattn.utils.errors import DatasetError

POS = torch.tensor([[1.0, 1, 5], [3, 1, 5], [1, 1, 9], [3, 1, 9]])


def test_sphere() -> None:
    pos, features = preprocess(POS)
    torch.testing.assert_close(pos, (POS - torch.tensor([2.0, 1, 7])) / 5**0.5)
    assert features is None


def test_box() -> None:
    pos, _ = preprocess(torch.cat((POS, POS[:1])), normalize="box")
    torch.testing.assert_close(pos[:4], torch.tensor([[-0.5, 0, -1], [0.5, 0, -1], [-0.5, 0, 1], [0.5, 0, 1]]))


def test_none() -> None:
    pos, height = preprocess(POS, features=["height"], normalize="none")
    assert torch.equal(pos, POS)
    assert height.tolist() == [[0], [0], [4], [4]]


def test_none_moves_what_float32_would_blur() -> None:
    """As `PointCloudFolder` does, and in float64 alone: other clouds come as networks have seen them."""
    far = POS.double() + 1e6
    pos, height = preprocess(far, features=["height"], normalize="none")
    torch.testing.assert_close(pos, (POS - POS.mean(0)).double())
    assert height.tolist() == [[0], [0], [4], [4]]
    assert torch.equal(preprocess(far.float(), normalize="none")[0], far.float())


def test_whole_numbers_are_refused() -> None:
    """Normalized positions would be truncated."""
    with pytest.raises(ValueError, match=r"expected pos to be floating point, but got torch\.int64"):
        preprocess(POS.long())


def test_height_has_the_unit_of_the_positions() -> None:
    pos, height = preprocess(POS, features=["height"], up_axis="x")
    torch.testing.assert_close(height[:, 0], pos[:, 0] - pos[:, 0].min())


def test_far_from_the_origin() -> None:
    """Centroid and radius are computed in double precision."""
    pos, _ = preprocess((POS + 4096.0).repeat(1000, 1))
    torch.testing.assert_close(pos[:4], preprocess(POS)[0])


def test_estimated_normals_come_first() -> None:
    pos = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    _, features = preprocess(pos, torch.ones(50, 3), ["nx", "ny", "nz"], features=["height", "estimated_normals"])
    torch.testing.assert_close(features[:, :3], estimate_normals(pos[None])[0])
    assert torch.equal(features[:, 3:], preprocess(pos, features=["height"])[1])


@pytest.mark.parametrize("normalize", ["sphere", "box"])
def test_a_single_place(normalize: str) -> None:
    assert preprocess(torch.full((3, 3), 7.0), normalize=normalize)[0].tolist() == [[0, 0, 0]] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": ["color"]}, "expected color among the features of the cloud, but it has height"),
        ({"features": ["normals"]}, "expected normals among .* but it has height, estimated_normals"),
        ({"features": ["normals", "estimated_normals"]}, "expected normals or estimated_normals, but got"),
        ({"features": ["height", "height"]}, "without repetition"),
        ({"normalize": "cube"}, "expected normalize to be one of sphere, box, none, but got 'cube'"),
        ({"up_axis": "w"}, "expected up_axis"),
    ],
)
def test_errors(options: dict, message: str) -> None:
    with pytest.raises((ValueError, DatasetError), match=message):
        preprocess(POS, **options)
