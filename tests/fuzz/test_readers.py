"""Every reader on seeded mutations, and on what coverage-guided fuzzing once found (`corpus/`)."""

from pathlib import Path

import pytest

from tests.fuzz.mutate import mutations
from tests.fuzz.readers import READERS, check, limited_memory

CORPUS = Path(__file__).parent / "corpus"

#: Mutations of the readers that take longest.
_FEWER = {"archive": 60, "checkpoint": 150, "hdf5_scanobjectnn": 60}


@pytest.fixture(params=READERS)
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "las":
        pytest.importorskip("laspy")
    return request.param


@pytest.fixture
def folder(name: str, tmp_path: Path) -> Path:
    """With a place for the file that the reader reads."""
    (tmp_path / READERS[name].file).parent.mkdir(parents=True, exist_ok=True)
    return tmp_path


def test_valid_files_are_read(name: str, folder: Path) -> None:
    reader = READERS[name]
    for content in reader.seeds():
        path = folder / reader.file
        path.write_bytes(content)
        reader.read(path)


@pytest.mark.filterwarnings("ignore")
def test_mutations_are_read_or_refused(name: str, folder: Path) -> None:
    reader = READERS[name]
    with limited_memory():
        for content in mutations(reader.seeds(), _FEWER.get(name, 250), seed=len(name)):
            check(reader, content, folder)


@pytest.mark.filterwarnings("ignore")
def test_what_was_found_once(name: str, folder: Path) -> None:
    with limited_memory():
        for path in sorted((CORPUS / name).glob("*")):
            check(READERS[name], path.read_bytes(), folder)
