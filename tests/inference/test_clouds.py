"""Clouds as users hold them: every kind gives the same points, and anything else is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from pcattn.inference.clouds import as_points, several
from pcattn.io.cloud import Cloud
from tests.data.test_dense import Clouds

POS = torch.arange(15, dtype=torch.float32).view(5, 3)
NORMAL = ("nx", "ny", "nz")
NORMALS = torch.nn.functional.normalize(torch.arange(15, 30, dtype=torch.float32).view(5, 3) - 22, dim=1)


def legacy(pos: Tensor, normals: Tensor | None = None):
    o3d = pytest.importorskip("open3d", exc_type=ImportError)
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(pos.numpy()))
    if normals is not None:
        cloud.normals = o3d.utility.Vector3dVector(normals.numpy())
    return cloud


def in_tensors(pos: Tensor, normals: Tensor | None = None):
    o3d = pytest.importorskip("open3d", exc_type=ImportError)
    cloud = o3d.t.geometry.PointCloud(pos.numpy())
    if normals is not None:
        cloud.point["normals"] = normals.numpy()
    return cloud


def array(pos: Tensor, normals: Tensor | None = None):
    return (pos if normals is None else torch.cat((pos, normals), dim=1)).numpy()


KINDS = {
    "numpy": array,
    "fortran": lambda *cloud: np.asfortranarray(array(*cloud)),
    "reversed": lambda *cloud: array(*cloud)[::-1].copy()[::-1],
    "big endian": lambda *cloud: array(*cloud).astype(">f4"),
    "float64": lambda *cloud: array(*cloud).astype(np.float64),
    "torch": lambda *cloud: torch.from_numpy(array(*cloud)),
    "lists": lambda *cloud: array(*cloud).tolist(),
    "pyg": lambda pos, normals=None: Data(pos=pos, x=normals),
    "pyg with more": lambda pos, normals=None: Data(pos=pos, x=pos[:, :2], normal=normals),
    "file": lambda pos, normals=None: Cloud(pos.numpy(), {} if normals is None else {"normals": normals.numpy()}),
    "pyg normal": lambda pos, normals=None: Data(pos=pos, normal=normals),
    "open3d legacy": legacy,
    "open3d tensor": in_tensors,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind: str) -> None:
    pos, features = as_points(KINDS[kind](POS))[:2]
    assert torch.equal(pos.float(), POS)
    assert features is None
    pos, features = as_points(KINDS[kind](POS, NORMALS), NORMAL)[:2]
    assert torch.equal(pos.float(), POS)
    torch.testing.assert_close(features.float(), NORMALS)
    assert several(KINDS[kind](POS)) is None
    assert len(several([KINDS[kind](POS)])) == 1


def test_channels_of_a_file() -> None:
    """In the order in which the file has them; colors between 0 and 1; nothing that was not asked for."""
    colors = np.array([[0, 51, 255]] * 5, dtype=np.uint8)
    attributes = {"intensity": np.arange(5, dtype=np.uint16), "colors": colors, "label": np.zeros(5)}
    points = as_points(Cloud(POS.numpy(), attributes), ["red", "green", "blue", "intensity"])
    assert points.names == ["intensity", "red", "green", "blue"]
    expected = [[i, 0.0, 0.2, 1.0] for i in range(5)]
    torch.testing.assert_close(points.channels, torch.tensor(expected))


def test_integers_are_exact() -> None:
    pos = as_points(np.array([[500_000_001, 2, 3]])).pos
    assert pos.tolist() == [[500_000_001.0, 2.0, 3.0]]


def test_read_only_arrays_are_taken() -> None:
    points = POS.numpy().copy()
    points.flags.writeable = False
    assert torch.equal(as_points(points).pos, POS)


def test_several() -> None:
    assert len(several(np.zeros((2, 5, 3)))) == 2
    assert len(several([])) == 0
    assert several(np.zeros((5, 3))) is None
    assert [len(cloud.pos) for cloud in several(Batch.from_data_list([Data(pos=POS), Data(pos=POS[:2])]))] == [5, 2]
    dataset = Clouds((4, 7, 3))
    assert [len(cloud.pos) for cloud in several(dataset)] == [4, 7, 3]
    assert [len(cloud.pos) for cloud in several(dataset[1:])] == [7, 3]


@pytest.mark.parametrize(
    ("cloud", "names", "message"),
    [
        (
            Data(pos=POS, batch=torch.tensor([0, 0, 0, 1, 1])),
            (),
            r"expected one cloud, but got 2 in one object, separated by `batch`",
        ),
        (
            np.zeros((7, 6)),
            (),
            r"expected points \(N, 3\), but got shape \(7, 6\); the positions are points\[:, :3\]",
        ),
        (np.zeros((3, 2000)), (), r"but got shape \(3, 2000\); with one row per point it is points\.T$"),
        (np.zeros((6, 2000)), NORMAL, r"but got shape \(6, 2000\); with one row per point it is points\.T$"),
        (np.zeros((5, 2)), (), r"but got shape \(5, 2\)$"),
        (np.ma.masked_equal(POS.numpy(), 4), (), "expected points without masked values, but got 1 of them"),
        (np.zeros((5, 3), dtype=np.complex64), (), r"expected points as real numbers, but got torch\.complex64$"),
        (np.zeros((0, 3)), (), r"at least one, but got shape \(0, 3\)"),
        (np.zeros((5, 4)), NORMAL, r"expected points \(N, 6\): x, y, z, nx, ny, nz, but got shape \(5, 4\)"),
        (Data(pos=POS, normal=POS[:2]), NORMAL, r"expected nx of 5 points, but got shape \(2,\)"),
        (Data(pos=POS, normal=POS / 0), NORMAL, "expected finite nx, but 5 of 5 points .* the first is point 0"),
        (np.array([[0, 0, 0], [0, np.nan, 0], [np.inf, 0, 0.0]]), (), "2 of 3 points .* the first is point 1"),
        (np.array([["a", "b", "c"]]), (), "expected points as numbers"),
        ("cloud.ply", (), r"but got str: pcattn\.io\.read_cloud reads a file"),
        (Path("cloud.ply"), (), r"Path: pcattn\.io\.read_cloud reads a file"),
        (None, (), "but got NoneType"),
    ],
)
def test_errors(cloud: object, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("the first", r"\(the first")):
        as_points(cloud, names)
