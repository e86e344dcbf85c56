"""One meaning, one spelling: what files call their channels, and what they are called here."""

import pytest

from pcattn.io.channels import canonical, find, members, name_members


@pytest.mark.parametrize(
    ("meaning", "spellings"),
    [
        ("x", ["x", "X", "x [m]", "X (mm)", '"x"', " x "]),
        ("pos", ["pos", "coord", "xyz", "points", "Coords"]),
        ("normals", ["normal", "normals", "Normals"]),
        ("nx", ["nx", "NX", "normal_x", "NormalX"]),
        ("colors", ["color", "colors", "colour", "rgb", "RGB"]),
        ("red", ["red", "R", "r", "Rf", "diffuse_red"]),
        ("label", ["label", "Labels", "segment", "scalar_Label"]),
        ("intensity", ["Intensity", "scalar_Intensity", "scalar_intensity"]),
    ],
)
def test_spellings(meaning: str, spellings: list[str]) -> None:
    assert {canonical(spelling) for spelling in spellings} <= {meaning}


def test_members_of_groups() -> None:
    assert members("rgb") == members("colors") == ("red", "green", "blue")
    assert members("intensity") == ("intensity",)
    assert name_members("normals", 3) == ["nx", "ny", "nz"]
    assert name_members("colors", 4) == ["red", "green", "blue", "alpha"]
    assert name_members("normals", 4) == ["normals_0", "normals_1", "normals_2", "normals_3"]
    assert name_members("embedding", 2) == ["embedding_0", "embedding_1"]


def test_find_prefers_the_same_spelling_and_never_guesses() -> None:
    assert find("label", ["label", "segment"]) == "label"
    assert find("label", ["x", "scalar_Label"]) == "scalar_Label"
    assert find("label", ["labels", "segment"]) is None
    assert find("label", ["x"]) is None
