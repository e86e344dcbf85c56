"""Small valid files of every kind, from which mutations start."""

import io
import json
import pickle
import struct
import zipfile
from typing import Any

import h5py
import numpy as np

RNG = np.random.default_rng(0)
POS = RNG.normal(size=(5, 3)).astype(np.float32)
CORNERS = "0 0 0\n2 0 0\n2 2 0\n0 2 0\n"


def _text(table: np.ndarray, separator: str = " ") -> str:
    return "".join(separator.join(f"{value:.4g}" for value in row) + "\n" for row in table)


def ply() -> list[bytes]:
    """The three encodings, with colors, lists at vertices, faces of one and of several sizes, and another element."""
    xyz = "property float x\nproperty float y\nproperty float z\n"
    face = "element face {}\nproperty list uchar int vertex_indices\n"
    heads = {kind: f"ply\nformat {kind} 1.0\n" for kind in ("ascii", "binary_little_endian", "binary_big_endian")}
    points = f"element vertex 5\n{xyz}end_header\n"
    square = f"comment made\nelement vertex 4\n{xyz}property uchar red\n" + face.format(2) + "end_header\n"
    corners = np.array([line.split() for line in CORNERS.splitlines()], np.float32)
    body = b"".join(struct.pack("<fffB", *corner, 9) for corner in corners)
    triangles = struct.pack("<B3iB3i", 3, 0, 1, 2, 3, 0, 2, 3)
    mixed = struct.pack("<B4iB3i", 4, 0, 1, 2, 3, 3, 0, 2, 3)
    lists = f"element vertex 3\n{xyz}property list uchar short ids\nend_header\n"
    front = "element camera 2\nproperty short id\nelement patch 1\nproperty list uchar short ids\n"
    return [
        (heads["ascii"] + points + _text(POS)).encode(),
        (heads["ascii"] + square + CORNERS.replace("\n", " 9\n") + "3 0 1 2\n4 0 1 2 3\n").encode(),
        (heads["binary_little_endian"] + points).encode() + POS.astype("<f4").tobytes(),
        (heads["binary_big_endian"] + points).encode() + POS.astype(">f4").tobytes(),
        (heads["binary_little_endian"] + square).encode() + body + triangles,
        (heads["binary_little_endian"] + square).encode() + body + mixed,
        (heads["binary_little_endian"] + front + points).encode() + bytes(4) + b"\1\0\0" + POS.tobytes(),
        (heads["ascii"] + lists + "0 0 0 2 5 6\n1 0 0 0\n0 1 0 1 7\n").encode(),
        (heads["binary_big_endian"] + lists).encode()
        + b"".join(struct.pack(">3fB2h", 1, n, 2, 2, n, 0) for n in range(3)),
    ]


def pcd() -> list[bytes]:
    """ascii, binary and compressed, packed colors, padding."""

    def head(encoding: str, fields: str, types: str, counts: str = "") -> bytes:
        size = " ".join("4" for _ in fields.split())
        count = f"COUNT {counts}\n" if counts else ""
        return (
            f"# .PCD v0.7\nVERSION 0.7\nFIELDS {fields}\nSIZE {size}\nTYPE {types}\n{count}WIDTH 5\nHEIGHT 1\n"
            f"POINTS 5\nDATA {encoding}\n"
        ).encode()

    raw = POS.T.astype("<f4").tobytes()
    literal = b"".join(bytes([len(raw[i : i + 32]) - 1]) + raw[i : i + 32] for i in range(0, len(raw), 32))
    zeros = bytes([0, 0, 7 << 5, len(raw) - 1 - 9, 0])
    return [
        head("ascii", "x y z", "F F F") + _text(POS).encode(),
        head("binary", "x y z", "F F F") + POS.tobytes(),
        head("binary", "x y z rgb", "F F F U") + np.hstack([POS, POS[:, :1]]).tobytes(),
        head("binary", "x y z _", "F F F U", "1 1 1 2") + np.hstack([POS, POS[:, :2]]).tobytes(),
        *(
            head("binary_compressed", "x y z", "F F F") + struct.pack("<II", len(packed), len(raw)) + packed
            for packed in (literal, zeros)
        ),
    ]


def text() -> list[bytes]:
    """Separators, a line of names, a count."""
    table = np.hstack([POS, np.arange(5)[:, None]])
    return [
        _text(POS).encode(),
        b"x,y,z,label\n" + _text(table, ",").encode(),
        b"# x y z label\n" + _text(table).encode(),
        b"5\n" + _text(np.hstack([table, table[:, 3:], table[:, 3:], table[:, 3:]])).encode(),
        b"1e3;-2.5;+.5\n1;2;3 // a remark\n",
        b"\xef\xbb\xbfA scan\n,X [m],Y [m],Z [m],Rf,Gf,Bf\n0,1,2,3,1.#QNAN,.5,1,\n1,1,2,3,.5,.5,1,\n",
    ]


def npy() -> list[bytes]:
    """Plain, in Fortran's order, structured."""
    rows = np.zeros(5, [("x", "f4"), ("y", ">f8"), ("z", "f4"), ("label", "u1")])
    return [_npy(POS), _npy(np.asfortranarray(POS.astype(">f8"))), _npy(rows), _npy(np.hstack([POS, POS]))]


def kitti() -> list[bytes]:
    """Five points."""
    return [np.hstack([POS, POS[:, :1]]).astype("<f4").tobytes()]


def npz() -> list[bytes]:
    """Stored and deflated."""
    result = []
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, pos=POS, label=np.arange(5), name=np.array("cup"))
        result.append(buffer.getvalue())
    return result


def off() -> list[bytes]:
    """Headers of both kinds, polygons, colors."""
    faces = "3 0 1 2\n3 0 2 3\n"
    return [
        f"OFF\n4 2 0\n{CORNERS}{faces}".encode(),
        f"OFF4 1 0\n{CORNERS}4 0 1 2 3\n".encode(),
        f"CNOFF\n4 1\n{CORNERS.replace(chr(10), ' 0 0 1 .5 .5 1 1' + chr(10))}4 0 1 2 3 255 0 0\n".encode(),
        f"# made\nCOFF\n4 2 0\n{CORNERS.replace(chr(10), ' 9 9 9 255' + chr(10))}{faces}".encode(),
    ]


def obj() -> list[bytes]:
    """Triangles, polygons with normals and texture, points alone."""
    corners = "".join(f"v {line}\n" for line in CORNERS.splitlines())
    return [
        f"mtllib a.mtl\n{corners}usemtl b\nf 1 2 3\nf -4 -2 -1\n".encode(),
        f"o a\n{corners}vn 0 0 1\nvt 0 0\ng c\nf 1/1/1 2/1/1 3/1/1 4/1/1\n".encode(),
        corners.replace("\n", " 1 0 0.5\n").encode(),
        f"{corners}f 1 2 3\n".replace(" ", "\t").encode(),
    ]


def stl() -> list[bytes]:
    """Binary and text."""
    facet = struct.pack("<12fH", 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0)
    lines = ["solid a", "facet normal 0 0 1", "outer loop", "vertex 0 0 0", "vertex 1 0 0", "vertex 0 1 0"]
    return [
        bytes(80) + struct.pack("<I", 2) + 2 * facet,
        b"solid".ljust(80) + struct.pack("<I", 0) + 2 * facet + b"behind",
        "\n".join([*lines, "endloop", "endfacet", "endsolid a", ""]).encode(),
    ]


def las() -> list[bytes]:
    """Uncompressed and compressed, with extra dimensions."""
    import laspy

    result = []
    for compressed, version, point_format in ((False, "1.2", 2), (True, "1.2", 0), (False, "1.4", 6)):
        header = laspy.LasHeader(point_format=point_format, version=version)
        if point_format == 6:
            header.add_extra_dim(laspy.ExtraBytesParams("own", "f4"))
        points = laspy.LasData(header)
        points.x, points.y, points.z = POS.T
        buffer = io.BytesIO()
        points.write(buffer, do_compress=compressed)
        result.append(buffer.getvalue())
    return result


def hdf5(**arrays: Any) -> list[bytes]:
    """Contiguous arrays, one of them compressed in chunks, and all of them so in the newest version of the format.

    The index of an array's chunks takes three kilobytes in the oldest version. The newest one has checksums, at which
    most mutations end.
    """
    result = []
    for version, compressed in (("earliest", ()), ("earliest", ("data",)), ("latest", tuple(arrays))):
        buffer = io.BytesIO()
        with h5py.File(buffer, "w", libver=version) as file:
            for name, array in arrays.items():
                options = {"compression": "gzip", "chunks": True} if name in compressed else {}
                file.create_dataset(name, data=array, **options)  # type: ignore[arg-type]
        result.append(buffer.getvalue())
    return result


def archive() -> list[bytes]:
    """Zip files, stored and deflated."""
    result = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as file:
            file.writestr("shapes/a.bin", bytes(40))
            file.writestr("shapes/sub/b.txt", b"hello")
        result.append(buffer.getvalue())
    return result


def safetensors() -> list[bytes]:
    """Weights with the metadata that `pcattn export` writes."""
    from safetensors.numpy import save

    about = {"task": "Classification", "hyper_parameters": {"num_classes": 3}, "data": {"num_points": 32}}
    return [save({"a.weight": POS, "a.bias": POS[0]}, {"format": "pt", "pcattn": json.dumps(about)})]


def checkpoint() -> list[bytes]:
    """What a checkpoint pickles; its tensors are put around it by the reader."""
    plain = {
        "epoch": 4,
        "global_step": 9,
        "state_dict": {},
        "hyper_parameters": {"num_classes": 3, "class_names": ["a", "b"], "_class_path": "pcattn.tasks.Classification"},
        "datamodule_hyper_parameters": {"num_points": 32},
        "callbacks": {"best": {"monitor": "val/oa", "current_score": 0.5}, "Timer": {}},
    }
    return [pickle.dumps(plain, protocol=2), pickle.dumps({"state_dict": {}, "hyper_parameters": {"parts": [[0]]}}, 2)]


def cache() -> list[bytes]:
    """An index of arrays in files of 60 and 40 bytes."""
    arrays = {"pos": {"dtype": "<f4", "shape": [5, 3]}, "label": {"dtype": "<i8", "shape": [5]}}
    return [json.dumps({"arrays": arrays, "info": {"skipped": []}}).encode()]


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
