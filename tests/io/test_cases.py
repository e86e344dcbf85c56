"""Kinds of files that users have: each is written here in small, and read with the right values."""

import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pcattn.io import read_cloud
from pcattn.io.channels import find
from pcattn.io.cloud import PrecisionWarning
from pcattn.utils.errors import DatasetBrokenError, DatasetError

RNG = np.random.default_rng(0)
POS = RNG.random((40, 3)).round(3)
COLORS = RNG.integers(0, 256, (40, 3))
LABELS = np.arange(40) % 3

CORNERS = np.array([[x, y, z] for x in (0.0, 1.0) for y in (0.0, 1.0) for z in (0.0, 1.0)])
QUADS = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
VERTEX = "property float x\nproperty float y\nproperty float z\n"


def rows(*columns: np.ndarray, separator: str = " ", end: str = "\n") -> str:
    table = np.column_stack(columns)
    return "".join(separator.join(f"{value:g}" for value in row) + end for row in table)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def on_cube(pos: np.ndarray) -> bool:
    """Whether points are on the surface of the unit cube, and on all of its sides."""
    sides = [(np.abs(pos[:, axis] - value) < 1e-6) for axis in range(3) for value in (0, 1)]
    return bool(np.any(sides, axis=0).all() and all(side.any() for side in sides) and pos.min() >= 0 and pos.max() <= 1)


class TestNamesInText:
    """A name is never dropped: the table is read by its names, or refused."""

    def test_index_of_a_data_frame(self, tmp_path: Path) -> None:
        text = ",x,y,z,label\n" + rows(np.arange(40), POS, LABELS, separator=",")
        cloud = read_cloud(write(tmp_path, "a.csv", text))
        np.testing.assert_allclose(cloud.pos, POS)
        np.testing.assert_array_equal(cloud.attributes["label"], LABELS)
        np.testing.assert_array_equal(cloud.attributes["column_1"], np.arange(40))

    def test_any_order(self, tmp_path: Path) -> None:
        cloud = read_cloud(write(tmp_path, "a.csv", "z,y,x\n" + rows(POS[:, ::-1], separator=",")))
        np.testing.assert_allclose(cloud.pos, POS)

    @pytest.mark.parametrize(
        ("header", "columns"),
        [
            ('"x" "y" "z"\n', [np.arange(40), POS]),  # R: the names of the rows have none
            ("z,y,x\n", [POS, LABELS]),
            ("# x y z label\n", [POS]),
            ("# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)\n", [LABELS, POS, COLORS, POS]),
        ],
        ids=["R", "nameless column", "too many names", "COLMAP"],
    )
    def test_names_that_do_not_fit(self, header: str, columns: list, tmp_path: Path) -> None:
        path = write(tmp_path, "a.txt", header + rows(*columns))
        width = np.column_stack(columns).shape[1]
        with pytest.raises(DatasetBrokenError, match=rf"a\.txt: expected {width} names, .*but got \d .*`columns`"):
            read_cloud(path)
        names = [f"c{index}" for index in range(width - 3)] + ["x", "y", "z"]
        np.testing.assert_allclose(read_cloud(path, columns=names).pos, np.column_stack(columns)[:, -3:], atol=1e-6)

    def test_lines_of_several_lengths(self, tmp_path: Path) -> None:
        path = write(tmp_path, "points3D.txt", "# x y z track\n1 2 3 4\n1 2 3 4 5\n")
        with pytest.raises(DatasetBrokenError, match=r"expected 4 numbers on every line .* got 5 on line 3"):
            read_cloud(path)

    def test_title_above_the_names(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.txt", "Scan of 2024-01-01\nX Y Z\n" + rows(POS))
        np.testing.assert_allclose(read_cloud(path).pos, POS)

    def test_title_without_names(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.txt", "Scan of 2024-01-01\n" + rows(LABELS, POS))
        with pytest.raises(DatasetBrokenError, match=r"names with x, y and z, on line 1, but got 'Scan of.*`columns`"):
            read_cloud(path)
        np.testing.assert_allclose(read_cloud(path, columns=["label", "x", "y", "z"]).pos, POS)

    @pytest.mark.parametrize("header", ["X [m],Y [m],Z [m]\n", "x (mm);y (mm);z (mm)\n", "X [m] Y [m] Z [m]\n"])
    def test_units(self, header: str, tmp_path: Path) -> None:
        np.testing.assert_allclose(read_cloud(write(tmp_path, "a.csv", header + rows(POS, separator=","))).pos, POS)

    def test_names_of_cloudcompare(self, tmp_path: Path) -> None:
        text = "//X Y Z Rf Gf Bf Scalar_field\n40\n" + rows(POS, COLORS / 255, LABELS)
        cloud = read_cloud(write(tmp_path, "a.asc", text))
        np.testing.assert_allclose(cloud.attributes["colors"], COLORS / 255, atol=1e-5)
        np.testing.assert_array_equal(cloud.attributes["Scalar_field"], LABELS)

    def test_intensity_first(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.txt", rows(LABELS + 7, POS, LABELS))
        cloud = read_cloud(path, columns=["intensity", "x", "y", "z", "label"])
        np.testing.assert_allclose(cloud.pos, POS)
        np.testing.assert_array_equal(cloud.attributes["intensity"], LABELS + 7)
        np.testing.assert_array_equal(cloud.attributes["label"], LABELS)

    def test_intensity_before_colors_is_ambiguous(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.txt", rows(POS, COLORS[:, 0], COLORS))
        with pytest.raises(DatasetBrokenError, match=r"columns 4 to 6 and 5 to 7 of 7 may both be colors.*`columns`"):
            read_cloud(path)
        cloud = read_cloud(path, columns=["x", "y", "z", "intensity", "r", "g", "b"])
        np.testing.assert_array_equal(cloud.attributes["colors"], COLORS)
        path = write(tmp_path, "b.txt", "x y z intensity r g b\n" + rows(POS, COLORS[:, 0], COLORS))
        np.testing.assert_array_equal(read_cloud(path).attributes["colors"], COLORS)

    def test_colors_before_a_label(self, tmp_path: Path) -> None:
        cloud = read_cloud(write(tmp_path, "a.txt", rows(POS, COLORS, LABELS)))
        np.testing.assert_array_equal(cloud.attributes["colors"], COLORS)
        np.testing.assert_array_equal(cloud.attributes["column_7"], LABELS)

    def test_unlabeled_points(self, tmp_path: Path) -> None:
        labels = np.where(np.arange(40) % 4, LABELS, 255)
        cloud = read_cloud(write(tmp_path, "a.txt", "x y z label\n" + rows(POS, labels)))
        np.testing.assert_array_equal(cloud.attributes["label"], labels)


class TestWaysToWriteText:
    @pytest.mark.parametrize(("separator", "end"), [(",", ",\n"), (";", ";\r\n"), (" ", " \n"), ("\t", "\t\n")])
    def test_separator_at_the_end(self, separator: str, end: str, tmp_path: Path) -> None:
        cloud = read_cloud(write(tmp_path, "a.csv", rows(POS, separator=separator, end=end)))
        np.testing.assert_allclose(cloud.pos, POS)
        assert not cloud.attributes

    @pytest.mark.parametrize("header", ["", "x,y,z\n"])
    def test_byte_order_mark(self, header: str, tmp_path: Path) -> None:
        text = "\ufeff" + header + rows(POS, separator=",")
        np.testing.assert_allclose(read_cloud(write(tmp_path, "a.csv", text)).pos, POS)

    @pytest.mark.parametrize("nan", ["nan", "NaN", "1.#QNAN", "-1.#IND00", "-nan(ind)"])
    def test_nan_of_windows(self, nan: str, tmp_path: Path) -> None:
        path = write(tmp_path, "a.xyz", f"1 2 3\n{nan} 1 2\n4 5 6\n")
        with pytest.raises(DatasetBrokenError, match="point 1 has NaN"):
            read_cloud(path)
        np.testing.assert_array_equal(read_cloud(path, drop_invalid=True).pos, [[1, 2, 3], [4, 5, 6]])

    def test_decimal_commas_are_refused(self, tmp_path: Path) -> None:
        for text in ("1,5;2,5;3,5\n", "1,5 2,5 3,5\n"):
            with pytest.raises(DatasetBrokenError, match="expected numbers on line 1"):
                read_cloud(write(tmp_path, "a.txt", text))


class TestNumpy:
    def test_names_of_torch_geometric(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", pos=POS, y=LABELS, x=POS[:, 0], Z=LABELS)
        cloud = read_cloud(tmp_path / "a.npz")
        np.testing.assert_array_equal(cloud.pos, POS)
        np.testing.assert_array_equal(cloud.attributes["y"], LABELS)
        np.testing.assert_array_equal(cloud.attributes["x"], POS[:, 0])
        assert list(cloud.attributes) == ["y", "x", "Z"]

    def test_names_of_pointcept(self, tmp_path: Path) -> None:
        normals = POS / np.linalg.norm(POS, axis=1, keepdims=True)
        np.savez(tmp_path / "a.npz", coord=POS, color=COLORS, normal=normals, segment=LABELS)
        cloud = read_cloud(tmp_path / "a.npz")
        np.testing.assert_array_equal(cloud.pos, POS)
        np.testing.assert_array_equal(cloud.attributes["colors"], COLORS)
        np.testing.assert_array_equal(cloud.attributes["normals"], normals)
        label = find("label", cloud.attributes)
        assert label == "segment"
        np.testing.assert_array_equal(cloud.attributes[label], LABELS)


class TestObj:
    @pytest.mark.parametrize(("vertex", "face"), [("\t", "\t"), (" ", "\t"), ("\t", " "), ("  ", " \t ")])
    def test_any_blanks(self, vertex: str, face: str, tmp_path: Path) -> None:
        lines = [vertex.join(["v", *map(str, corner)]) for corner in CORNERS]
        path = write(tmp_path, "points.obj", "\n".join(["o\tcube", *lines]))
        np.testing.assert_array_equal(read_cloud(path).pos, CORNERS)
        lines += [face.join(["f", *(str(index + 1) for index in quad)]) for quad in QUADS]
        path = write(tmp_path, "cube.obj", "\n".join(["o\tcube", *lines]))
        assert on_cube(read_cloud(path).pos)
        np.testing.assert_array_equal(read_cloud(path, mesh="vertices").pos, CORNERS)


class TestOff:
    @pytest.mark.parametrize(
        ("header", "extra"),
        [
            ("OFF", ""),
            ("NOFF", " 0 0 1"),
            ("COFF", " 255 10 0 255"),
            ("OFF", " 255 10 0 255"),
            ("OFF", " 255 10 0"),
            ("CNOFF", " 0 0 1 255 10 0 255"),
            ("COFF", " 1.0 0.0392157 0.0 1.0"),
        ],
    )
    @pytest.mark.parametrize("face_color", ["", " 9 9 9"])
    def test_normals_and_colors(self, header: str, extra: str, face_color: str, tmp_path: Path) -> None:
        lines = [" ".join(map(str, corner)) + extra for corner in CORNERS]
        lines += [" ".join(map(str, (4, *quad))) + face_color for quad in QUADS]
        path = write(tmp_path, "cube.off", "\n".join([header, "8 6 0", *lines]))
        cloud = read_cloud(path)
        assert on_cube(cloud.pos)
        vertices = read_cloud(path, mesh="vertices")
        np.testing.assert_array_equal(vertices.pos, CORNERS)
        for found in (cloud, vertices):
            if extra and header != "NOFF":
                colors = found.attributes["colors"]
                scale = 255 if colors.dtype == np.uint8 else 1
                np.testing.assert_allclose(colors / scale, np.tile([1, 10 / 255, 0], (len(colors), 1)), atol=1e-5)
            else:
                assert "colors" not in found.attributes
        if "N" in header:
            np.testing.assert_array_equal(vertices.attributes["normals"], np.tile([0, 0, 1], (8, 1)))


class TestStl:
    def binary(self, count: int) -> bytes:
        corners = [CORNERS[quad[i]] for quad in QUADS for i in (0, 1, 2, 0, 2, 3)]
        facets = [(np.zeros(3), *corners[i : i + 3]) for i in range(0, 36, 3)]
        body = b"".join(np.concatenate(facet).astype("<f4").tobytes() + bytes(2) for facet in facets)
        return b"solid but binary".ljust(80) + struct.pack("<I", count) + body

    @pytest.mark.parametrize(("count", "behind"), [(12, b""), (12, b"trailer"), (12, bytes(100)), (0, b""), (0, b"ab")])
    def test_counts_and_trailing_bytes(self, count: int, behind: bytes, tmp_path: Path) -> None:
        cloud = read_cloud(write(tmp_path, "cube.stl", self.binary(count) + behind))
        assert on_cube(cloud.pos)

    def test_fewer_triangles_than_it_says(self, tmp_path: Path) -> None:
        path = write(tmp_path, "cube.stl", self.binary(13))
        with pytest.raises(DatasetBrokenError, match="a mesh of 13 triangles as the header says, but got 12"):
            read_cloud(path)

    def test_two_solids(self, tmp_path: Path) -> None:
        def solid(offset: float) -> str:
            facets = ""
            for quad in QUADS:
                for triangle in (quad[:3], [quad[0], *quad[2:]]):
                    corners = "".join(f"vertex {x + offset} {y} {z}\n" for x, y, z in CORNERS[triangle])
                    facets += f"facet normal 0 0 0\nouter loop\n{corners}endloop\nendfacet\n"
            return f"solid a\n{facets}endsolid a\n"

        pos = read_cloud(write(tmp_path, "cubes.stl", solid(0) + solid(10))).pos
        near = pos[:, 0] < 5
        assert on_cube(pos[near])
        assert on_cube(pos[~near] - [10, 0, 0])


class TestPly:
    def cube(self, extra: str = "", comment: bytes = b"", encoding: str = "ascii") -> bytes:
        head = f"ply\nformat {encoding} 1.0\n".encode() + comment
        return head + f"element vertex 8\n{VERTEX}{extra}end_header\n".encode()

    def test_lists_at_vertices_in_text(self, tmp_path: Path) -> None:
        for lengths in ([2] * 8, [0, 1, 2, 3, 4, 5, 6, 7]):
            lines = [
                " ".join(map(str, [*corner, n, *[0.5] * n, label]))
                for label, (corner, n) in enumerate(zip(CORNERS, lengths, strict=True))
            ]
            head = self.cube("property list uint float64 descriptor\nproperty int label\n")
            cloud = read_cloud(write(tmp_path, "a.ply", head + "\n".join(lines).encode()))
            np.testing.assert_array_equal(cloud.pos, CORNERS)
            assert list(cloud.attributes) == ["label"]
            np.testing.assert_array_equal(cloud.attributes["label"], np.arange(8))

    @pytest.mark.parametrize("order", ["<", ">"])
    def test_lists_at_vertices_in_binary(self, order: str, tmp_path: Path) -> None:
        encoding = "binary_little_endian" if order == "<" else "binary_big_endian"
        for lengths in ([2] * 8, [0, 1, 2, 3, 4, 5, 6, 7]):
            body = b"".join(
                struct.pack(f"{order}3fI{n}di", *corner, n, *[0.5] * n, label)
                for label, (corner, n) in enumerate(zip(CORNERS, lengths, strict=True))
            )
            extra = "property list uint float64 descriptor\nproperty int label\n"
            cloud = read_cloud(write(tmp_path, "a.ply", self.cube(extra, encoding=encoding) + body))
            np.testing.assert_array_equal(cloud.pos, CORNERS)
            np.testing.assert_array_equal(cloud.attributes["label"], np.arange(8))

    def test_comment_in_another_alphabet(self, tmp_path: Path) -> None:
        content = self.cube(comment="comment exporté par Gebäude-Scanner\n".encode("latin-1")) + rows(CORNERS).encode()
        np.testing.assert_array_equal(read_cloud(write(tmp_path, "a.ply", content)).pos, CORNERS)

    def test_nan_of_windows(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.ply", self.cube() + b"-nan(ind) 0 0\n" + rows(CORNERS[1:]).encode())
        with pytest.raises(DatasetBrokenError, match="point 0 has NaN"):
            read_cloud(path)
        np.testing.assert_array_equal(read_cloud(path, drop_invalid=True).pos, CORNERS[1:])

    @pytest.mark.parametrize("kind", ["float", "double"])
    def test_far_coordinates_in_single_precision_warn(self, kind: str, tmp_path: Path) -> None:
        head = self.cube(encoding="binary_little_endian").decode().replace("float", kind).encode()
        far = (CORNERS + np.array([627_000, 4_841_000, 0])).astype("<f4" if kind == "float" else "<f8")
        path = write(tmp_path, "a.ply", head + far.tobytes())
        if kind == "float":
            with pytest.warns(PrecisionWarning, match=r"a\.ply holds coordinates up to 4,841,001 in .* steps of 0\.5"):
                read_cloud(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                np.testing.assert_array_equal(read_cloud(path).pos, far)

    def test_labels_at_the_vertices_of_a_mesh(self, tmp_path: Path) -> None:
        extra = "property ushort label\nelement face 6\nproperty list uchar int vertex_indices\n"
        faces = "".join(" ".join(map(str, (4, *quad))) + "\n" for quad in QUADS)
        path = write(tmp_path, "a.ply", self.cube(extra) + (rows(CORNERS, np.arange(8) % 2) + faces).encode())
        vertices = read_cloud(path, mesh="vertices")
        np.testing.assert_array_equal(vertices.pos, CORNERS)
        np.testing.assert_array_equal(vertices.attributes["label"], np.arange(8) % 2)
        sampled = read_cloud(path)
        assert on_cube(sampled.pos)
        # The last coordinate of a corner is its label, and a point takes that of the nearest corner of its face.
        clear = np.abs(sampled.pos[:, 2] - 0.5) > 0.4
        agree = sampled.attributes["label"][clear] == (sampled.pos[clear, 2] > 0.5)
        assert agree.mean() > 0.95

    def test_eight_bit_colors_in_sixteen_bits(self, tmp_path: Path) -> None:
        extra = "".join(f"property ushort {name}\n" for name in ("red", "green", "blue"))
        for colors, kind in ((COLORS[:8], np.uint8), (COLORS[:8] * 257, np.uint16)):
            path = write(tmp_path, "a.ply", self.cube(extra) + rows(CORNERS, colors).encode())
            found = read_cloud(path).attributes["colors"]
            assert found.dtype == kind
            np.testing.assert_allclose(found / np.iinfo(kind).max, COLORS[:8] / 255, atol=1e-6)


class TestPcd:
    def head(self, fields: str, size: str, types: str, count: str, shape: str, encoding: str) -> bytes:
        return (
            f"# .PCD v0.7\nVERSION 0.7\nFIELDS {fields}\nSIZE {size}\nTYPE {types}\nCOUNT {count}\n{shape}\n"
            f"VIEWPOINT 0 0 0 1 0 0 0\nPOINTS 8\nDATA {encoding}\n"
        ).encode()

    def test_organized_with_packed_colors(self, tmp_path: Path) -> None:
        packed = (COLORS[:8, 0] << 16 | COLORS[:8, 1] << 8 | COLORS[:8, 2]).astype("<u4").view("<f4")
        lines = [" ".join(map(repr, map(float, (*corner, rgb)))) for corner, rgb in zip(CORNERS, packed, strict=True)]
        lines[3] = "nan nan nan 0"
        head = self.head("x y z rgb", "4 4 4 4", "F F F F", "1 1 1 1", "WIDTH 4\nHEIGHT 2", "ascii")
        path = write(tmp_path, "a.pcd", head + "\n".join(lines).encode())
        with pytest.raises(DatasetBrokenError, match="point 3 has NaN"):
            read_cloud(path)
        cloud = read_cloud(path, drop_invalid=True)
        np.testing.assert_array_equal(cloud.pos, np.delete(CORNERS, 3, axis=0))
        np.testing.assert_array_equal(cloud.attributes["colors"], np.delete(COLORS[:8], 3, axis=0))

    @pytest.mark.parametrize("encoding", ["ascii", "binary"])
    def test_fields_without_bytes(self, encoding: str, tmp_path: Path) -> None:
        head = self.head("x y z _", "4 4 4 1", "F F F U", "1 1 1 0", "WIDTH 8\nHEIGHT 1", encoding)
        body = rows(CORNERS).encode() if encoding == "ascii" else CORNERS.astype("<f4").tobytes()
        np.testing.assert_array_equal(read_cloud(write(tmp_path, "a.pcd", head + body)).pos, CORNERS)


class TestKitti:
    def test_four_columns(self, tmp_path: Path) -> None:
        table = np.column_stack([POS, POS[:, 0]]).astype("<f4")
        cloud = read_cloud(write(tmp_path, "000000.bin", table.tobytes()))
        np.testing.assert_array_equal(cloud.pos, table[:, :3])
        np.testing.assert_array_equal(cloud.attributes["intensity"], table[:, 3])
        assert cloud.pos.dtype == np.float32

    def test_other_columns(self, tmp_path: Path) -> None:
        table = np.column_stack([POS, LABELS, LABELS]).astype("<f4")
        path = write(tmp_path, "a.bin", table.tobytes())
        cloud = read_cloud(path, columns=["x", "y", "z", "intensity", "ring"])
        np.testing.assert_array_equal(cloud.attributes["ring"], LABELS)
        with pytest.raises(DatasetBrokenError, match=r"a\.bin: expected points of 4 float32 .*but got 804 bytes"):
            read_cloud(write(tmp_path, "a.bin", table.tobytes() + bytes(4)))


class TestLas:
    @pytest.fixture
    def make(self, tmp_path: Path) -> Callable[..., Path]:
        def make(colors: np.ndarray, name: str = "a.las") -> Path:
            laspy = pytest.importorskip("laspy")
            header = laspy.LasHeader(point_format=3, version="1.2")
            header.scales, header.offsets = [0.001] * 3, [627_000, 4_841_000, 0]
            header.add_extra_dim(laspy.ExtraBytesParams("treeID", "u4"))
            las = laspy.LasData(header)
            las.x, las.y, las.z = (POS + header.offsets).T
            las.red, las.green, las.blue = colors.T.astype(np.uint16)
            las.treeID = LABELS
            las.write(tmp_path / name)
            return tmp_path / name

        return make

    @pytest.mark.parametrize("name", ["a.las", "a.laz"])
    def test_colors_by_their_values(self, name: str, make: Callable[..., Path]) -> None:
        for scale, kind in ((1, np.uint8), (257, np.uint16)):
            cloud = read_cloud(make(COLORS * scale, name))
            assert cloud.attributes["colors"].dtype == kind
            np.testing.assert_array_equal(cloud.attributes["colors"], COLORS * scale)
            np.testing.assert_allclose(cloud.pos - [627_000, 4_841_000, 0], POS, atol=1e-6)
            np.testing.assert_array_equal(cloud.attributes["treeID"], LABELS)

    def test_a_missing_decompressor_is_named(self, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
        path = make(COLORS, "a.laz")
        monkeypatch.setitem(sys.modules, "lazrs", None)
        with pytest.raises(DatasetError, match=r"a\.laz needs lazrs: pip install lazrs"):
            read_cloud(path)
