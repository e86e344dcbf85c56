"""Files made to harm: promises of more than they hold, ways out of their folder, names that are no names."""

import io
import json
import stat
import struct
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from pcattn.data.dense import DenseClouds
from pcattn.datasets import ModelNet40, PointCloudFolder, ShapeNetPart, Shapes
from pcattn.datasets.folder_layout import find_layout
from pcattn.datasets.modelnet_layouts import TextLayout
from pcattn.io import read_cloud
from pcattn.io.download import DownloadError, unpack
from pcattn.io.hdf5 import read_arrays
from pcattn.io.limits import check_expansion
from pcattn.io.text import read_table
from pcattn.utils.errors import DatasetBrokenError, DatasetError
from tests.datasets.modelnet_files import write_resampled
from tests.datasets.shapenet_files import write_text
from tests.datasets.user_files import write_clouds
from tests.fuzz.readers import limited_memory

HUGE = 10**12
XYZ = "property float x\nproperty float y\nproperty float z\n"


def npy_header(shape: tuple[int, ...], kind: str = "<f4") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": kind, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def refused(path: Path, content: bytes | None, reason: str, read: Any = read_cloud) -> None:
    """Reading ends at once, takes no memory, and says why."""
    if content is not None:
        path.write_bytes(content)
    start = time.process_time()
    with limited_memory(), pytest.raises(DatasetError, match=rf"{path.name}.*{reason}"):
        read(path)
    assert time.process_time() - start < 1


class TestPromises:
    @pytest.mark.parametrize(
        ("name", "content", "reason"),
        [
            ("a.ply", f"ply\nformat ascii 1.0\nelement vertex {HUGE}\n{XYZ}end_header\n1 2 3\n", "x vertex"),
            ("b.ply", f"ply\nformat binary_little_endian 1.0\nelement vertex {HUGE}\n{XYZ}end_header\n", "x vertex"),
            ("c.ply", f"ply\nformat ascii 1.0\nelement vertex {'9' * 5000}\n{XYZ}end_header\n", "digits"),
            (
                "d.ply",
                f"ply\nformat ascii 1.0\nelement vertex 1\n{XYZ}element face {HUGE}\n"
                "property list uchar int vertex_indices\nend_header\n1 2 3\n3 0 0 0\n",
                "x face",
            ),
            ("a.pcd", f"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nPOINTS {HUGE}\nDATA binary\n", "as the header says"),
            (
                "b.pcd",
                f"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nPOINTS {HUGE}\nDATA ascii\n1 2 3\n",
                "as the header says",
            ),
            ("c.pcd", "FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 9999\nPOINTS 1\nDATA ascii\n1 2 3\n", "4096"),
            ("a.pts", f"{HUGE}\n1 2 3\n", "points as its first line says"),
            ("a.off", f"OFF\n{HUGE} 1 0\n0 0 0\n3 0 0 0\n", "a mesh"),
            ("b.off", f"OFF\n3 {HUGE} 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", "a mesh"),
            ("a.stl", "x" * 80 + "\xff\xff\xff\x7f", "a mesh"),
        ],
    )
    def test_headers(self, name: str, content: str, reason: str, tmp_path: Path) -> None:
        refused(tmp_path / name, content.encode("latin-1"), reason)

    @pytest.mark.parametrize("shape", [(HUGE, 3), (3, HUGE), (2**62, 2**62), (2**32, 2**32, 3)])
    def test_numpy(self, shape: tuple[int, ...], tmp_path: Path) -> None:
        content = npy_header(shape) + bytes(64)
        refused(tmp_path / "a.npy", content, "")
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("pos.npy", content)
        refused(tmp_path / "a.npz", None, "as its header says")

    def test_a_row_is_no_cloud_of_a_million_columns(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.zeros((1, 1_000_000), np.float32))
        refused(tmp_path / "a.npy", None, "at most 10000 columns")

    def test_lists_of_a_ply(self, tmp_path: Path) -> None:
        """A list of 4 billion indices; many faces as long as the first, which is long; a count that is no integer."""
        head = f"ply\nformat binary_little_endian 1.0\nelement vertex 1\n{XYZ}"
        face = "element face {}\nproperty list {} int vertex_indices\nend_header\n"
        first = struct.pack("<I", 100_000) + bytes(400_000)
        for kind, body, count, reason in (
            ("uint", b"\xff\xff\xff\xff" + bytes(400), 1, "a whole list"),
            ("uint64", b"\xff" * 8 + bytes(400), 1, "a whole list"),
            ("uint", first + bytes(80_000), 20_000, ""),
            ("float", bytes(400), 1, "a line of a PLY header"),
        ):
            refused(tmp_path / "a.ply", (head + face.format(count, kind)).encode() + bytes(12) + body, reason)

    def test_faces_of_many_sizes_take_time_in_proportion(self, tmp_path: Path) -> None:
        sizes = np.random.default_rng(0).permutation(np.arange(3, 300).repeat(20))
        body = b"".join(struct.pack("<I", size) + bytes(4 * int(size)) for size in sizes)
        head = f"ply\nformat binary_little_endian 1.0\nelement vertex 1\n{XYZ}element face {len(sizes)}\n"
        path = tmp_path / "a.ply"
        path.write_bytes((head + "property list uint int vertex_indices\nend_header\n").encode() + bytes(12) + body)
        assert len(read_cloud(path, mesh="vertices").pos) == 1

    def test_faces_point_at_vertices(self, tmp_path: Path) -> None:
        refused(tmp_path / "a.off", b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 -1\n", "")

    def test_libraries_keep_silent(self, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
        """What trimesh tells of normals that are none is a traceback."""
        path = tmp_path / "a.stl"
        corners = "outer loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop"
        path.write_text(f"solid a\nfacet normal 0 0 z\n{corners}\nendfacet\nendsolid a\n{' ' * 90}")
        assert len(read_cloud(path, mesh="vertices").pos) == 3
        assert "Traceback" not in "".join(capfd.readouterr())

    def test_wide_tables_of_many_lines(self, tmp_path: Path) -> None:
        """As many columns as the first line has, times as many rows as there are lines, would be a terabyte."""
        path = tmp_path / "a.txt"
        content = b"1 " * 300_000 + b"\n" * 900_000
        path.write_bytes(content)
        with limited_memory():
            assert read_table(path).shape == (1, 300_000)
        refused(path, content + b"1 2", "on every line as on the first", read_table)
        refused(path, b"\x0b\n", "numbers", read_table)


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return tempfile.mkdtemp, ("", "ran", str(self.folder))


class TestPickles:
    def test_numpy(self, tmp_path: Path) -> None:
        objects = np.array([Evil(tmp_path)], dtype=object)
        np.save(tmp_path / "a.npy", objects, allow_pickle=True)
        refused(tmp_path / "a.npy", None, "object|pickle")
        np.savez(tmp_path / "a.npz", pos=objects, allow_pickle=True)
        refused(tmp_path / "a.npz", None, "pickle|[Oo]bject")
        assert not list(tmp_path.glob("ran*"))

    def test_generated_data_sets(self, tmp_path: Path) -> None:
        """torch-geometric would unpickle it. What is no cache is generated anew."""
        first = Shapes(str(tmp_path), num_train=3, num_points=16)
        (path,) = (tmp_path / "processed").iterdir()
        torch.save((Evil(tmp_path), {}, None), path)
        again = Shapes(str(tmp_path), num_train=3, num_points=16)
        assert torch.equal(again._data.pos, first._data.pos)
        assert not list(tmp_path.glob("ran*"))

    def test_caches_hold_no_pointers(self, tmp_path: Path) -> None:
        """A cache may come with the data: one of objects, or of files elsewhere, is not opened."""
        from pcattn.io import cache

        (tmp_path / "pos.bin").write_bytes(bytes(range(24)))
        for arrays in (
            {"pos": {"dtype": "|O", "shape": [3]}},
            {"../pos": {"dtype": "<i8", "shape": [3]}},
            {"pos": {"dtype": "<i8", "shape": [-1, -3]}},
            {"pos": {"dtype": "<i8", "shape": [2**33, 2**31]}},
            {"pos": {"dtype": "<i8", "shape": ["3"]}},
            ["pos"],
        ):
            folder = tmp_path / "cache"
            folder.mkdir(exist_ok=True)
            (folder / "index.json").write_text(json.dumps({"arrays": arrays, "info": {}}))
            (folder / "pos.bin").write_bytes(bytes(range(24)))
            assert cache._open(folder) is None
        (folder / "index.json").write_text("[" * 100_000)
        assert cache._open(folder) is None

    @pytest.mark.parametrize("kind", ["folder", "modelnet", "shapenet"])
    def test_caches_of_something_else(self, tmp_path: Path, kind: str) -> None:
        """Whatever one of a valid form lacks or says wrong is told of it: no traceback, nothing read beyond it."""
        if kind == "folder":
            write_clouds(tmp_path, {"ball": 3, "disc": 3}, labels=True)
        elif kind == "modelnet":
            write_resampled(tmp_path / "modelnet40_normal_resampled")
        else:
            write_text(tmp_path / "shapenet")

        def read_all() -> None:
            if kind == "folder":
                data = DenseClouds(PointCloudFolder(str(tmp_path)), features=["color"]).sampled(16)
            elif kind == "modelnet":
                data = DenseClouds(ModelNet40(str(tmp_path)), features=["normals"]).sampled(16)
            else:
                data = DenseClouds(ShapeNetPart(str(tmp_path / "shapenet")), True, features=["normals"]).sampled(16)
            data[0, torch.arange(len(data))]

        read_all()
        (folder,) = (path.parent for path in tmp_path.rglob("processed/*/index.json"))
        index = json.loads((folder / "index.json").read_text())
        content = {name: (folder / f"{name}.bin").read_bytes() for name in index["arrays"]}

        def without(part: str, name: str) -> dict:
            return {**index, part: {key: value for key, value in index[part].items() if key != name}}

        tampered = [(without(part, name), {}) for part in index for name in index[part]]
        tampered += [({**index, "info": {**index["info"], name: 3}}, {}) for name in index["info"]]
        for name, layout in index["arrays"].items():
            size = np.dtype(layout["dtype"]).itemsize
            other = {"<f4": "<i4", "<i8": "<f8", "|u1": "|i1", "|i1": "|b1"}[layout["dtype"]]
            few = {**layout, "shape": [1, *layout["shape"][1:]]}
            for change, data in (
                ({**layout, "shape": [len(content[name]) // size]}, content[name]),  # flat
                ({**layout, "dtype": other}, content[name]),
                (few, content[name][: size * int(np.prod(few["shape"]))]),  # one row
                (layout, b"\x7f" * len(content[name])),  # huge numbers
            ):
                tampered.append(({**index, "arrays": {**index["arrays"], name: change}}, {name: data}))
        said = set()
        for changed, files in tampered:
            (folder / "index.json").write_text(json.dumps(changed))
            for name, data in (content | files).items():
                (folder / f"{name}.bin").write_bytes(data)
            try:
                with limited_memory():
                    read_all()
            except DatasetError as error:
                said.add(type(error))
        assert DatasetBrokenError in said


class TestHDF5:
    """Nothing outside of the file is read, whatever it refers to."""

    def read(self, path: Path) -> Any:
        return read_arrays(path, {"data": np.float32})

    @pytest.fixture
    def other(self, tmp_path: Path) -> Path:
        """A file that should not be read."""
        with h5py.File(tmp_path / "other.h5", "w") as file:
            file["data"] = np.full((2, 3), 7.0)
        return tmp_path / "other.h5"

    @pytest.mark.parametrize("link", ["external", "soft", "soft to external"])
    def test_links(self, link: str, other: Path, tmp_path: Path) -> None:
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file["real"] = np.zeros((2, 3))
            file["far"] = h5py.ExternalLink(str(other), "/data")
            target = {"soft": h5py.SoftLink("/real"), "soft to external": h5py.SoftLink("/far")}
            file["data"] = target.get(link) or h5py.ExternalLink(str(other), "/data")
        refused(path, None, "a link in place of data", self.read)

    def test_virtual(self, other: Path, tmp_path: Path) -> None:
        path = tmp_path / "a.h5"
        layout = h5py.VirtualLayout((2, 3), "f8")
        layout[:] = h5py.VirtualSource(str(other), "data", (2, 3))
        with h5py.File(path, "w") as file:
            file.create_virtual_dataset("data", layout)
        refused(path, None, "data in another file", self.read)

    def test_external_storage(self, tmp_path: Path) -> None:
        (tmp_path / "secret.bin").write_bytes(bytes(48))
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("data", (2, 3), "f8", external=[(str(tmp_path / "secret.bin"), 0, 48)])
        refused(tmp_path / "a.h5", None, "data in another file", self.read)

    @pytest.mark.parametrize(
        "options",
        [
            {"shape": (HUGE, 2048, 3), "chunks": (1, 64, 3)},
            {"shape": (HUGE, 2048, 3)},
            {"shape": (1, 3), "maxshape": (None, 3), "chunks": (300_000_000, 3)},
        ],
        ids=["chunks", "contiguous", "one large chunk"],
    )
    def test_shapes_without_storage(self, options: dict, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("data", dtype="f4", **options)
        refused(tmp_path / "a.h5", None, "that fits its|unable|Unable|in the file", self.read)

    @pytest.mark.parametrize("filters", [{"compression": "gzip"}, {"compression": "gzip", "scaleoffset": 0}])
    def test_bombs(self, filters: dict, tmp_path: Path) -> None:
        """400 MB of zeros."""
        with h5py.File(tmp_path / "a.h5", "w") as file:
            data = file.create_dataset("data", (400, 1_000_000), "i1", chunks=(1, 1_000_000), **filters)
            chunk = np.zeros(1_000_000, np.int8)
            data[0] = chunk
            packed = data.id.read_direct_chunk((0, 0))
            for row in range(1, 400):
                data.id.write_direct_chunk((row, 0), packed[1], packed[0])
        refused(tmp_path / "a.h5", None, "that fits its", self.read)

    def test_other_types(self, tmp_path: Path) -> None:
        path = tmp_path / "a.h5"
        kinds: list[Any] = [b"text", h5py.Empty("f4"), np.float32(1), np.zeros(3, [("x", "f4")]), np.array([b"1.5"])]
        for value in kinds:
            with h5py.File(path, "w") as file:
                file["data"] = value
            refused(path, None, "something other than numbers in data", self.read)
        with h5py.File(path, "w") as file:
            file.create_group("data")
        refused(path, None, "something other than numbers in data", self.read)

    @pytest.mark.parametrize("value", [0.7, np.nan, np.inf])
    def test_integers_that_are_none(self, value: float, tmp_path: Path) -> None:
        """A label is not rounded to some class."""
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file["data"] = np.array([1.0, value, 2.0])
        reason = f"{value} in data, which must hold integers"
        refused(path, None, reason, lambda path: read_arrays(path, {"data": np.int64}))
        with h5py.File(path, "w") as file:
            file["data"] = np.array([1.0, -1.0])
        assert read_arrays(path, {"data": np.int64})["data"].tolist() == [1, -1]


def test_what_compresses_well_is_no_bomb() -> None:
    """Labels beside coordinates; but nothing that deflate cannot make, nor a large array that is the whole file."""
    mega = 1 << 20
    check_expansion("label", 400 * mega, 2 * mega, 500 * mega)
    check_expansion("label", 200 * mega, mega, mega)
    for size, stored, file_size in ((1033, 1, 500 * mega), (400 * mega, 2 * mega, 2 * mega)):
        with pytest.raises(ValueError, match=f"array label that fits its {stored} bytes in the file, but got {size}"):
            check_expansion("label", size, stored, file_size)


class TestArchives:
    def unpacked(self, tmp_path: Path, reason: str, max_bytes: int = 1 << 20) -> None:
        before = sorted(tmp_path.iterdir())
        with limited_memory(), pytest.raises(DownloadError, match=reason):
            unpack(tmp_path / "a.zip", tmp_path / "target", max_bytes)
        assert sorted(tmp_path.iterdir()) == before

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
    def test_tar(self, kind: bytes, tmp_path: Path) -> None:
        """No tar archive is unpacked, hence none of its hard links and devices."""
        with tarfile.open(tmp_path / "a.zip", "w:gz") as archive:
            member = tarfile.TarInfo("../../link")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        self.unpacked(tmp_path, "zip archive")

    @pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
    def test_links_and_devices(self, kind: int, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            member = zipfile.ZipInfo("a")
            member.external_attr = (kind | 0o777) << 16
            archive.writestr(member, "/etc/passwd")
        self.unpacked(tmp_path, "link or a device")

    @pytest.mark.parametrize("names", [["a", "a/b"], ["a" * 300], ["a/" * 200 + "b" * 300], []])
    def test_names(self, names: list[str], tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for name in names:
                archive.writestr(name, b"x")
        self.unpacked(tmp_path, r"a\.zip")

    def test_members_that_share_their_bytes(self, tmp_path: Path) -> None:
        """Fifty names for the same deflated zeros: each alone would pass."""
        with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("pos.npy", npy_header((900_000, 3)) + bytes(900_000 * 12))
            first = archive.infolist()[0]
            for index in range(50):
                member = zipfile.ZipInfo(f"a{index}.npy")
                for name in ("header_offset", "compress_size", "file_size", "CRC", "compress_type", "flag_bits"):
                    setattr(member, name, getattr(first, name))
                archive.filelist.append(member)
        refused(tmp_path / "a.npz", None, "that fits its")
        (tmp_path / "a.npz").rename(tmp_path / "a.zip")
        self.unpacked(tmp_path, "at most")
        self.unpacked(tmp_path, "zip archive|differ", 1 << 40)

    def test_damaged_streams(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a", bytes(range(256)) * 4)
        content = bytearray((tmp_path / "a.zip").read_bytes())
        content[35:60] = b"\xff" * 25
        (tmp_path / "a.zip").write_bytes(content)
        self.unpacked(tmp_path, "zip archive")


class TestWaysOut:
    """Lists that a data set brings along name files in its folder alone."""

    @pytest.mark.parametrize("entry", ["../secret.xyz", "/etc/hosts.xyz", "a/../../secret.xyz"])
    def test_lists_of_clouds(self, entry: str, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "secret.xyz").write_text("1 2 3\n")
        path = tmp_path / "data" / "list.csv"
        refused(path, f"path,label\n{entry},a\n".encode(), "paths inside the folder of the list, but got", find_layout)
        path.write_text("path,label\n..a/b.xyz,a\nc/../d.xyz,a\n")
        assert len(find_layout(path).entries) == 2

    @pytest.mark.parametrize("folder", ["../elsewhere", "/etc", "..", "a/b", "a\\b"])
    def test_folders_of_categories(self, folder: str, tmp_path: Path) -> None:
        root = write_text(tmp_path / "data")
        (root / "synsetoffset2category.txt").write_text(f"Mug {folder}\n")
        with pytest.raises(
            DatasetBrokenError, match=r"synsetoffset2category\.txt: expected lines of a name and a folder"
        ):
            ShapeNetPart(str(root))

    def test_names_of_classes(self, tmp_path: Path) -> None:
        names = [f"class_{i}" for i in range(9)]
        path = tmp_path / "modelnet10_shape_names.txt"
        path.write_text("\n".join([*names, "../../home"]))
        (tmp_path / "modelnet10_train.txt").write_text("../../home_0001")
        with pytest.raises(DatasetBrokenError, match=r"names of classes, but got '\.\./\.\./home'"):
            TextLayout(tmp_path, 10).sources("train")
        path.write_bytes(b"\xff\xfe")
        with pytest.raises(DatasetBrokenError, match="expected text in UTF-8"):
            TextLayout(tmp_path, 10).class_names()

    def test_lists_that_are_none(self, tmp_path: Path) -> None:
        root = write_text(tmp_path / "data")
        path = root / "train_test_split" / "shuffled_train_file_list.json"
        for content in ("[" * 100_000, "7", '[["a"]]', "[null]", "{", "\xff"):
            path.write_text(content, encoding="latin-1")
            with pytest.raises(DatasetBrokenError, match="shuffled_train_file_list"):
                ShapeNetPart(str(root))


class TestLinks:
    """The user's own links are followed, but not in circles."""

    def test_folders_within_themselves(self, tmp_path: Path) -> None:
        root = write_clouds(tmp_path / "data", {"ball": 3, "disc": 3})
        for index in range(6):
            (root / "ball" / f"again{index}").symlink_to(root / "ball")
            (root / "disc" / f"all{index}").symlink_to(root)
        found = find_layout(root)
        own = [entry.path.parent.name for entry in found.entries if "/all" not in str(entry.path)]
        assert own == ["ball"] * 3 + ["disc"] * 3
        assert len(found.entries) < 100

    def test_links_to_nothing_and_to_themselves(self, tmp_path: Path) -> None:
        root = write_clouds(tmp_path / "data", {"ball": 3, "disc": 3})
        (root / "ball" / "self.ply").symlink_to(root / "ball" / "self.ply")
        (root / "disc" / "gone.ply").symlink_to(root / "nowhere")
        (root / "loop").symlink_to(root / "loop")
        with pytest.raises(DatasetError, match="there is no such file"):
            PointCloudFolder(str(root))
        with pytest.warns(UserWarning, match=r"skipped 2 .*no such file"):
            assert len(PointCloudFolder(str(root), on_error="skip", test_fraction=0)) == 6
        refused(root / "ball" / "self.ply", None, "there is no such file")

    def test_linked_data(self, tmp_path: Path) -> None:
        write_clouds(tmp_path / "disk" / "balls", {"ball": 4, "disc": 4})
        (tmp_path / "data").symlink_to(tmp_path / "disk" / "balls")
        assert len(PointCloudFolder(str(tmp_path / "data"), test_fraction=0)) == 8
