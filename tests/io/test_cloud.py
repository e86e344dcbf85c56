"""Single clouds on disk: every format read back, and every broken file told by name and reason."""

import io
import os
import re
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pcattn.io.cloud import Cloud, read_cloud, write_ply
from pcattn.utils.errors import DatasetBrokenError, DatasetError

RNG = np.random.default_rng(0)
POS = RNG.normal(size=(7, 3)).astype(np.float32)
NORMALS = (POS / np.linalg.norm(POS, axis=1, keepdims=True)).astype(np.float32)
COLORS = RNG.integers(0, 256, size=(7, 3)).astype(np.uint8)
FAR = POS.astype(np.float64) + np.array([431_234.123456, 5_412_345.654321, 100.0])

SQUARE = "0 0 0\n2 0 0\n2 2 0\n0 2 0\n"


def ply(header: str, body: bytes = b"", encoding: str = "ascii") -> bytes:
    return f"ply\nformat {encoding} 1.0\n{header}\nend_header\n".encode() + body


def xyz_header(count: int, kind: str = "float") -> str:
    return f"element vertex {count}\n" + "\n".join(f"property {kind} {axis}" for axis in "xyz")


def pcd(encoding: str, body: bytes, count: int = 7, fields: str = "x y z", types: str = "F F F") -> bytes:
    size = " ".join("4" for _ in fields.split())
    return (
        f"# .PCD v0.7\nVERSION 0.7\nFIELDS {fields}\nSIZE {size}\nTYPE {types}\n"
        f"WIDTH {count}\nHEIGHT 1\nPOINTS {count}\nDATA {encoding}\n".encode()
        + body
    )


def text(table: np.ndarray, separator: str = " ") -> bytes:
    return "".join(separator.join(repr(float(value)) for value in row) + "\n" for row in table).encode()


def broken(path: Path, content: bytes | None, reason: str, **options) -> None:
    """Reading raises an error with file and reason."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatasetBrokenError, match=rf"(?s)broken file .*{re.escape(path.name)}.*{reason}") as caught:
        read_cloud(path, **options)
    assert "\n" not in str(caught.value)


class TestPly:
    @pytest.mark.parametrize("encoding", ["ascii", "binary_little_endian", "binary_big_endian"])
    def test_encodings_and_any_property(self, encoding: str, tmp_path: Path) -> None:
        """Another element in front, properties in any order, a list of no interest behind."""
        order = ">" if "big" in encoding else "<"
        rows = np.empty(
            7, [("label", order + "i2"), *((a, order + "f8") for a in "xyz"), ("red", "u1"), ("t", order + "f4")]
        )
        rows["label"], rows["red"], rows["t"] = np.arange(7) - 3, COLORS[:, 0], POS[:, 0]
        for index, axis in enumerate("xyz"):
            rows[axis] = FAR[:, index]
        header = (
            "comment made here\nelement camera 2\nproperty float view\nelement vertex 7\nproperty short label\n"
            "property double x\nproperty double y\nproperty double z\nproperty uchar red\nproperty float t\n"
            "element patch 1\nproperty list uchar int ids"
        )
        if encoding == "ascii":
            lines = [" ".join(repr(value.item()) for value in row) for row in rows]
            body = "\n".join(["0.5", "1.5", *lines, "2 0 1", ""]).encode()
        else:
            body = np.array([0.5, 1.5], order + "f4").tobytes() + rows.tobytes() + b"\x02" + bytes(8)
        path = tmp_path / "cloud.ply"
        path.write_bytes(ply(header, body, encoding))
        cloud = read_cloud(path)
        np.testing.assert_array_equal(cloud.pos, FAR)
        assert cloud.pos.dtype == np.float64
        assert {name: values.dtype for name, values in cloud.attributes.items()} == {
            "label": np.int16,
            "red": np.uint8,
            "t": np.float32,
        }
        np.testing.assert_array_equal(cloud.attributes["label"], np.arange(7) - 3)
        np.testing.assert_array_equal(cloud.attributes["t"], POS[:, 0])

    @pytest.mark.parametrize("encoding", ["ascii", "binary_little_endian"])
    @pytest.mark.parametrize("polygons", [[[0, 1, 2], [0, 2, 3]], [[0, 1, 2, 3]], [[0, 1, 2, 3], [0, 1, 2]]])
    def test_faces_are_sampled(self, encoding: str, polygons: list, tmp_path: Path) -> None:
        header = (
            xyz_header(4) + f"\nproperty int part\nelement face {len(polygons)}\nproperty list uchar int vertex_indices"
        )
        corners = [(0.0, 0.0, 0.0, 4), (2.0, 0.0, 0.0, 5), (2.0, 2.0, 0.0, 6), (0.0, 2.0, 0.0, 7)]
        if encoding == "ascii":
            lines = [" ".join(map(str, c)) for c in corners] + [" ".join(map(str, (len(p), *p))) for p in polygons]
            body = "\n".join(lines).encode()
        else:
            body = b"".join(struct.pack("<fffi", *corner) for corner in corners)
            body += b"".join(struct.pack(f"<B{len(p)}i", len(p), *p) for p in polygons)
        path = tmp_path / "mesh.ply"
        path.write_bytes(ply(header, body, encoding))
        cloud = read_cloud(path, num_points=500)
        assert cloud.pos.shape == (500, 3)
        assert (cloud.pos[:, 2] == 0).all()
        assert 0 <= cloud.pos[:, :2].min() < 0.1 < 1.9 < cloud.pos[:, :2].max() <= 2
        np.testing.assert_array_equal(cloud.attributes["normals"], np.tile([0, 0, 1], (500, 1)))
        corner = np.array([[4, 5], [7, 6]])[(cloud.pos[:, 1] > 1).astype(int), (cloud.pos[:, 0] > 1).astype(int)]
        np.testing.assert_array_equal(cloud.attributes["part"], corner)
        np.testing.assert_array_equal(read_cloud(path, num_points=500).pos, cloud.pos)
        assert not np.array_equal(read_cloud(path, num_points=500, seed=1).pos, cloud.pos)
        assert len(read_cloud(path, mesh="vertices").pos) == 4

    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        attributes = {
            "normals": NORMALS,
            "colors": COLORS,
            "label": np.arange(7),
            "score": POS[:, 0].astype(np.float64),
            "seen": np.arange(7) % 2 == 0,
        }
        path = tmp_path / "cloud.ply"
        write_ply(path, Cloud(FAR, attributes))
        cloud = read_cloud(path)
        np.testing.assert_array_equal(cloud.pos, FAR)
        assert list(cloud.attributes) == list(attributes)
        for name, values in attributes.items():
            np.testing.assert_array_equal(cloud.attributes[name], values)
        assert cloud.attributes["label"].dtype == np.int32
        assert [file.name for file in tmp_path.iterdir()] == ["cloud.ply"]

    def test_nothing_is_overwritten_silently(self, tmp_path: Path) -> None:
        path = tmp_path / "cloud.ply"
        write_ply(path, Cloud(POS, {}))
        before = path.read_bytes()
        with pytest.raises(FileExistsError, match=r"cloud\.ply exists"):
            write_ply(path, Cloud(-POS, {}))
        with pytest.raises(ValueError, match="label of 7 points"):
            write_ply(path, Cloud(POS, {"label": np.arange(3)}), overwrite=True)
        assert path.read_bytes() == before
        assert len(list(tmp_path.iterdir())) == 1
        write_ply(path, Cloud(-POS, {}), overwrite=True)
        np.testing.assert_array_equal(read_cloud(path).pos, -POS)

    @pytest.mark.parametrize(
        ("attributes", "message"),
        [
            ({"id": np.full(7, 2**40)}, "32 bits in id"),
            ({"my label": np.arange(7)}, "without spaces"),
            ({"name": np.array(["a"] * 7)}, "numbers in name"),
        ],
    )
    def test_what_ply_cannot_hold(self, attributes: dict, message: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=message):
            write_ply(tmp_path / "cloud.ply", Cloud(POS, attributes))
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("encoding", ["ascii", "binary_little_endian"])
    def test_broken(self, encoding: str, tmp_path: Path) -> None:
        path = tmp_path / "cloud.ply"
        body = text(POS) if encoding == "ascii" else POS.astype("<f4").tobytes()
        whole = ply(xyz_header(7), body, encoding)
        path.write_bytes(whole)
        np.testing.assert_array_equal(read_cloud(path).pos, POS)
        broken(path, ply(xyz_header(10**12), body, encoding), "expected 1000000000000 x vertex as the header says")
        broken(path, ply(f"element vertex {10**12}", body, encoding), "expected 1000000000000 x vertex")
        broken(path, whole[: -len(body) // 2], "expected 7")
        broken(path, ply(xyz_header(0), b"", encoding), "it has none")
        broken(path, ply(xyz_header(7).replace(" z", " w"), body, encoding), "got no z among x, y, w")
        face = "\nelement face 1\nproperty list uchar int vertex_indices"
        wrong = b"3 0 1 7\n" if encoding == "ascii" else b"\x03" + np.array([0, 1, 7], "<i4").tobytes()
        broken(path, ply(xyz_header(7) + face, body + wrong, encoding), "vertices 0 to 6, but got 7")
        broken(path, ply(xyz_header(7) + face, body + wrong[:-5], encoding), "a whole list of a PLY element")
        many = face.replace("face 1", "face 1000000000")
        broken(path, ply(xyz_header(7) + many, body + wrong, encoding), "expected 1000000000 x face")

    def test_broken_headers(self, tmp_path: Path) -> None:
        path = tmp_path / "cloud.ply"
        broken(path, b"ply\nformat ascii 1.0\nelement vertex 7\n", "ends with end_header")
        broken(path, b"ply\nelement vertex 0\nend_header\n", "a line `format`")
        broken(path, b"ply\nformat ascii 1.0\nend_header\n", "an element vertex")
        broken(path, b"ply\nformat ascii 1.0\nelement vertex -3\nend_header\n", "got 'element vertex -3'")
        broken(path, ply("element vertex 1\nproperty quaternion x", b"1\n"), "got 'property quaternion x'")
        broken(
            path, ply(xyz_header(1) + "\nproperty float x", b"1 2 3 4\n"), "cannot be used|occurs more than once|'x'"
        )
        broken(path, b"1 2 3\n", "first line is `ply`")
        broken(path, b"ply\n" + b"comment " + b"x" * (1 << 21), "ends with end_header")
        broken(path, ply(xyz_header(1), b"1 2 fish\n"), "fish")


class TestPcd:
    def test_encodings(self, tmp_path: Path) -> None:
        path = tmp_path / "cloud.pcd"
        for content in (pcd("ascii", text(POS)), pcd("binary", POS.astype("<f4").tobytes())):
            path.write_bytes(content)
            cloud = read_cloud(path)
            np.testing.assert_array_equal(cloud.pos, POS)
            assert cloud.pos.dtype == np.float32

    def test_compressed(self, tmp_path: Path) -> None:
        """Literal runs, a copy from before, and one that overlaps itself: x = y = z = 0."""
        path = tmp_path / "cloud.pcd"
        raw = np.zeros((3, 7), "<f4").tobytes()
        packed = bytes([0, 0, 7 << 5, len(raw) - 1 - 9, 0])  # one zero; then copy the rest from one byte before
        head = struct.pack("<II", len(packed), len(raw))
        path.write_bytes(pcd("binary_compressed", head + packed))
        np.testing.assert_array_equal(read_cloud(path).pos, np.zeros((7, 3)))
        raw = POS.T.astype("<f4").tobytes()
        packed = b"".join(bytes([len(raw[i : i + 32]) - 1]) + raw[i : i + 32] for i in range(0, len(raw), 32))
        path.write_bytes(pcd("binary_compressed", struct.pack("<II", len(packed), len(raw)) + packed))
        np.testing.assert_array_equal(read_cloud(path).pos, POS)
        broken(
            path, pcd("binary_compressed", struct.pack("<II", len(packed), len(raw)) + packed[:-9]), "bytes of points"
        )
        damaged = b"\xff" * len(packed)
        broken(path, pcd("binary_compressed", struct.pack("<II", len(packed), len(raw)) + damaged), "damaged")
        broken(
            path,
            pcd("binary_compressed", struct.pack("<II", 5, 12 * 10**8) + bytes(5), 10**8),
            "cannot hold",
        )

    def test_packed_colors_and_normals(self, tmp_path: Path) -> None:
        path = tmp_path / "cloud.pcd"
        rows = np.empty(7, [("xyz", "<f4", 3), ("rgb", "<u4"), ("n", "<f4", 3)])
        red, green, blue = COLORS.astype(np.uint32).T
        rows["xyz"], rows["n"], rows["rgb"] = POS, NORMALS, red << 16 | green << 8 | blue
        fields = "x y z rgb normal_x normal_y normal_z"
        path.write_bytes(pcd("binary", rows.tobytes(), fields=fields, types="F F F U F F F"))
        cloud = read_cloud(path)
        np.testing.assert_array_equal(cloud.attributes["colors"], COLORS)
        np.testing.assert_array_equal(cloud.attributes["normals"], NORMALS)

    def test_invalid_points_can_be_left_out(self, tmp_path: Path) -> None:
        path = tmp_path / "cloud.pcd"
        pos = POS.copy()
        pos[2] = np.nan
        broken(path, pcd("binary", pos.tobytes()), "point 2 has NaN")
        np.testing.assert_array_equal(read_cloud(path, drop_invalid=True).pos, np.delete(POS, 2, axis=0))
        broken(path, pcd("binary", np.full((7, 3), np.inf, "<f4").tobytes()), "no point has them", drop_invalid=True)

    def test_broken(self, tmp_path: Path) -> None:
        path = tmp_path / "cloud.pcd"
        broken(path, pcd("binary", b"1234", 10**12), "bytes of points as the header says, but got 4")
        broken(path, pcd("ascii", b"1 2 3\n", 10**12), "bytes of points as the header says")
        broken(path, pcd("ascii", text(POS[:5]) * 2, 20), "expected 20 lines of 3 numbers, but got 10")
        broken(path, pcd("zipped", b""), "got 'zipped'")
        broken(path, pcd("ascii", text(POS), types="F F"), "for 3 fields each")
        broken(path, b"# .PCD v0.7\nFIELDS x y z\n", "a line DATA")


class TestText:
    @pytest.mark.parametrize("separator", [" ", ",", ";", "\t", ", "])
    def test_separators(self, separator: str, tmp_path: Path) -> None:
        path = tmp_path / "cloud.txt"
        path.write_bytes(text(FAR, separator))
        np.testing.assert_array_equal(read_cloud(path).pos, FAR)

    def test_meaning_of_columns(self, tmp_path: Path) -> None:
        path = tmp_path / "cloud.txt"
        labels = np.arange(7.0)[:, None]
        path.write_bytes(text(np.hstack([POS, NORMALS, labels])))
        assert set(read_cloud(path).attributes) == {"normals", "column_7"}
        path.write_bytes(text(np.hstack([POS, COLORS])))
        np.testing.assert_array_equal(read_cloud(path).attributes["colors"], COLORS)
        path.write_bytes(text(np.hstack([labels, POS])))
        cloud = read_cloud(path, columns=["label", "x", "y", "z"])
        np.testing.assert_array_equal(cloud.pos, POS)
        np.testing.assert_array_equal(cloud.attributes["label"], labels[:, 0])
        broken(path, None, "expected 3 columns .*but got 4", columns=["x", "y", "z"])

    @pytest.mark.parametrize("header", ["x,y,z,label\n", "# x y z label\n", "//X Y Z label\n", '"x","y","z","label"\n'])
    def test_line_of_names(self, header: str, tmp_path: Path) -> None:
        path = tmp_path / "cloud.csv"
        path.write_bytes(header.encode() + text(np.hstack([POS, np.arange(7.0)[:, None]]), ","))
        cloud = read_cloud(path)
        np.testing.assert_array_equal(cloud.pos, POS)
        np.testing.assert_array_equal(cloud.attributes["label"], np.arange(7))

    def test_pts_with_its_count(self, tmp_path: Path) -> None:
        path = tmp_path / "cloud.pts"
        table = np.hstack([POS, np.arange(7.0)[:, None], COLORS])
        path.write_bytes(b"7\n" + text(table))
        cloud = read_cloud(path)
        np.testing.assert_array_equal(cloud.attributes["intensity"], np.arange(7))
        np.testing.assert_array_equal(cloud.attributes["colors"], COLORS)
        broken(path, b"9\n" + text(table), "expected 9 points as its first line says, but got 7")

    def test_broken(self, tmp_path: Path) -> None:
        path = tmp_path / "cloud.xyz"
        broken(path, b"0 0 0\n1 1 1\n2 2\n", "expected 3 numbers on every line as on the first, but got 2 on line 3")
        broken(path, b"# a\n0 0 0\n1 1 fish\n", "expected numbers, but got 'fish' on line 3")
        broken(path, b"0 0\n1 1\n", "at least three columns")
        broken(path, b"\n\n", "lines of numbers, but got none")
        broken(path, b"C 1 2 3\n", "numbers on line 1, but got 'C 1 2 3'")
        broken(path, b"1 2 3\n1 2 nan\n", "point 1 has NaN")
        broken(path, b"1 2 3\n1 2 inf\n1 inf 3\n", r"point 1 \(and 1 more\) has NaN")
        broken(path, bytes(range(256)) * 9, "numbers")


class TestNumpy:
    def test_arrays(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.hstack([POS, NORMALS]))
        cloud = read_cloud(tmp_path / "a.npy")
        np.testing.assert_array_equal(cloud.pos, POS)
        np.testing.assert_array_equal(cloud.attributes["normals"], NORMALS)
        rows = np.zeros(7, [("x", "f8"), ("y", "f8"), ("z", "f8"), ("label", "i4")])
        np.save(tmp_path / "b.npy", rows)
        assert read_cloud(tmp_path / "b.npy").attributes["label"].dtype == np.int32
        np.savez_compressed(tmp_path / "c.npz", points=POS, label=np.arange(7), name=np.array("cup"))
        cloud = read_cloud(tmp_path / "c.npz")
        np.testing.assert_array_equal(cloud.pos, POS)
        assert list(cloud.attributes) == ["label"]

    def test_broken(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npy"
        np.save(path, np.array([{"x": 1}], dtype=object), allow_pickle=True)
        broken(path, None, "expected numbers, but got pickled objects")
        np.save(path, np.zeros((7, 2)))
        broken(path, None, "at least three columns")
        np.save(path, np.zeros((2, 7, 3)))
        broken(path, None, r"an array of numbers \(N, C\)")
        np.save(path, POS)
        broken(path, path.read_bytes()[:-8], "greater than file size|bytes")
        huge = io.BytesIO()
        np.lib.format.write_array_header_1_0(huge, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 3)})
        broken(path, huge.getvalue() + bytes(1024), "greater than file size|bytes|memory")
        path = tmp_path / "a.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("pos.npy", huge.getvalue() + bytes(1024))
        broken(path, None, "as its header says")
        np.savez(path, np.array([None], dtype=object), allow_pickle=True)
        broken(path, None, "expected numbers, but got pickled objects")
        np.savez(path, a=POS, b=POS)
        broken(path, None, r"expected an array pos \(N, 3\), but got a, b")
        broken(path, path.read_bytes()[:200], "an archive of numpy arrays")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "hello")
        broken(path, None, "magic|numpy")

    @pytest.mark.parametrize("rows", [3, 6])
    def test_a_transposed_cloud_is_no_cloud_of_three_points(self, rows: int, tmp_path: Path) -> None:
        table = np.random.default_rng(0).normal(size=(rows, 300))
        reason = rf"expected one row per point, \(N, C\), but got \({rows}, 300\): transpose it"
        np.save(tmp_path / "a.npy", table)
        broken(tmp_path / "a.npy", None, reason)
        np.savez(tmp_path / "a.npz", points=table)
        broken(tmp_path / "a.npz", None, reason)
        np.savetxt(tmp_path / "a.txt", table)
        broken(tmp_path / "a.txt", None, reason)
        np.save(tmp_path / "b.npy", table[:, :20])
        assert len(read_cloud(tmp_path / "b.npy").pos) == rows


class TestMeshes:
    @pytest.mark.parametrize("header", ["OFF\n4 2 0\n", "OFF4 2 0\n", "# made here\nOFF\n4 2 0\n"])
    def test_off(self, header: str, tmp_path: Path) -> None:
        path = tmp_path / "mesh.off"
        path.write_text(f"{header}{SQUARE}3 0 1 2\n3 0 2 3\n")
        cloud = read_cloud(path, num_points=100)
        assert cloud.pos.shape == cloud.attributes["normals"].shape == (100, 3)
        assert 0 <= cloud.pos.min() <= cloud.pos.max() <= 2

    def test_sampling_is_by_area(self, tmp_path: Path) -> None:
        """Triangles of areas 1/2 and 9/2."""
        path = tmp_path / "mesh.obj"
        path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 5 0 0\nv 8 0 0\nv 5 3 0\nf 1 2 3\nf -3 -2 -1\n")
        pos = read_cloud(path, num_points=4000).pos
        assert (pos[:, 0] > 4).mean() == pytest.approx(0.9, abs=0.02)

    def test_obj_of_points(self, tmp_path: Path) -> None:
        path = tmp_path / "cloud.obj"
        path.write_text("mtllib nowhere.mtl\n" + "".join(f"v {x} {y} {z} 1 0 0.5\n" for x, y, z in POS))
        cloud = read_cloud(path)
        np.testing.assert_allclose(cloud.pos, POS)
        np.testing.assert_array_equal(cloud.attributes["colors"][0], [1, 0, 0.5])

    def test_stl(self, tmp_path: Path) -> None:
        path = tmp_path / "mesh.stl"
        facet = struct.pack("<12fH", 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0)
        path.write_bytes(bytes(80) + struct.pack("<I", 1) + facet)
        assert read_cloud(path, num_points=50).pos.shape == (50, 3)
        broken(path, bytes(80) + struct.pack("<I", 10**9) + facet, "a mesh")

    def test_names_of_any_alphabet(self, tmp_path: Path) -> None:
        name = "Stühle\x85".encode("latin-1")
        facet = struct.pack("<12fH", 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0)
        lines = b"facet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\n"
        for suffix, body in {
            "off": b"OFF\n# %s\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n" % name,
            "obj": b"o %s\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n" % name,
            "stl": name.ljust(80) + struct.pack("<I", 1) + facet,
            "STL": b"solid %s\n%sendsolid %s\n" % (name, lines, name),
        }.items():
            path = tmp_path / f"mesh.{suffix}"
            path.write_bytes(body)
            np.testing.assert_array_equal(read_cloud(path, mesh="vertices").pos, [[0, 0, 0], [1, 0, 0], [0, 1, 0]])

    def test_broken(self, tmp_path: Path) -> None:
        path = tmp_path / "mesh.off"
        broken(path, b"OFF\n1000000000000 2 0\n0 0 0\n", "a mesh")
        broken(path, f"OFF\n4 1 0\n{SQUARE}3 0 1 9\n".encode(), "a mesh|cannot be read")
        broken(path, f"OFF\n4 1 0\n{SQUARE}3 0 0 0\n".encode(), "no area")
        broken(path, f"OFF\n4 1 0\n{SQUARE.replace('2 2', 'nan 2')}3 0 1 2\n".encode(), "point 2 has NaN")
        broken(path, b"hello\n", "first word is `OFF`")
        path = tmp_path / "mesh.obj"
        broken(path, b"v 0 0 0\nv 1 0 0\nf 1 2 9\n", "a mesh")
        broken(path, b"hello\n", "vertices")


class TestLas:
    def test_coordinates_keep_their_precision(self, tmp_path: Path) -> None:
        laspy = pytest.importorskip("laspy")
        path = tmp_path / "cloud.las"
        header = laspy.LasHeader(point_format=2, version="1.2")
        header.scales, header.offsets = [0.001] * 3, FAR.min(axis=0)
        las = laspy.LasData(header)
        las.x, las.y, las.z = FAR.T
        las.red, las.green, las.blue = COLORS.T.astype(np.uint16)
        las.classification = np.arange(7)
        las.write(path)
        cloud = read_cloud(path)
        np.testing.assert_allclose(cloud.pos, FAR, atol=0.0006)
        np.testing.assert_array_equal(cloud.attributes["colors"], COLORS)
        np.testing.assert_array_equal(cloud.attributes["classification"], np.arange(7))
        broken(path, path.read_bytes()[:-30], "points of 26 bytes")
        broken(path, path.read_bytes()[:100], "LAS")


class TestAnyFile:
    def test_a_missing_library_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "laspy", None)
        (tmp_path / "cloud.las").write_bytes(b"LASF")
        with pytest.raises(DatasetError, match=r"cloud\.las needs laspy: pip install laspy"):
            read_cloud(tmp_path / "cloud.las")

    def test_wrong_content(self, tmp_path: Path) -> None:
        broken(tmp_path / "empty.ply", b"", r"it is empty \(0 bytes\)")
        broken(tmp_path / "image.ply", b"\x89PNG\r\n\x1a\n" + bytes(99), r"ends in \.ply, but it holds a PNG image")
        broken(tmp_path / "cloud.txt", ply(xyz_header(1), b"1 2 3\n"), r"holds PLY: rename it to \.ply")
        broken(tmp_path / "cloud.docx", b"1 2 3\n", r"expected one of \.ply, .*got \.docx")
        broken(tmp_path / "nowhere.ply", None, "no such file")
        (tmp_path / "folder.ply").mkdir()
        broken(tmp_path / "folder.ply", None, "a folder or a device")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.ply")
        broken(tmp_path / "pipe.ply", None, "a folder or a device")

    def test_options(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="mesh to be sample or vertices, but got 'points'"):
            read_cloud(tmp_path / "a.ply", mesh="points")
        with pytest.raises(ValueError, match="num_points >= 1"):
            read_cloud(tmp_path / "a.ply", num_points=0)
