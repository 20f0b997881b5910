"""LevelDB's log behaves as the simulator believes (tests/simulation/disk.py): whole writes, a prefix of them, torn tails."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from node.storage.database import Database

WRITES = 40


@dataclass(frozen=True)
class Image:
    """A database copied while it was open, as a power cut leaves it, with the length of its log after each write."""

    folder: Path
    log: str
    ends: tuple[int, ...]

    def open(self, work: Path, data: bytes) -> Database:
        """Open a copy whose log holds `data` instead."""
        copy = work / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.folder, copy)
        (copy / self.log).write_bytes(data)
        return Database(copy)

    @property
    def data(self) -> bytes:
        return (self.folder / self.log).read_bytes()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Forty writes of two keys each; some writes cross a boundary of the log's blocks of 32 KiB."""
    folder = tmp_path_factory.mktemp("cut")
    database = Database(folder / "live")
    ends = []
    for number in range(WRITES):
        value = bytes([number]) * (500 + 100 * number)
        database.write({b"first": value, b"second": value[::-1]}, sync=number % 4 == 0)
        (log,) = (folder / "live").glob("*.log")
        ends.append(log.stat().st_size)
    shutil.copytree(folder / "live", folder / "image")
    database.close()
    return Image(folder / "image", log.name, tuple(ends))


def survivors(database: Database) -> int:
    """How many writes are there; both keys are always of the same one."""
    try:
        first, second = database.get(b"first"), database.get(b"second")
    finally:
        database.close()
    assert (first is None) == (second is None)
    if first is None:
        return 0
    assert second == first[::-1]
    assert set(first) == {first[0]}
    return first[0] + 1


@pytest.mark.parametrize("where", ["a byte short", "half", "a byte of the next"])
def test_of_a_log_that_is_cut_anywhere_every_whole_write_is_there_and_no_part_of_the_torn_one(
    image: Image, tmp_path: Path, where: str
) -> None:
    begins = (0, *image.ends)
    for number in range(0, WRITES, 2):
        begin, end = begins[number], image.ends[number]
        length, whole = {
            "a byte short": (end - 1, number),
            "half": ((begin + end) // 2, number),
            "a byte of the next": (end + 1, number + 1),
        }[where]
        assert survivors(image.open(tmp_path, image.data[:length])) == whole


def test_zeros_behind_the_end_are_no_damage(image: Image, tmp_path: Path) -> None:
    """A file system may have made the file longer than what reached it."""
    for number in (3, 17, WRITES - 1):
        data = image.data[: image.ends[number]] + bytes(5000)
        assert survivors(image.open(tmp_path, data)) == number + 1


def test_what_is_torn_once_stays_away_and_later_writes_stay(image: Image, tmp_path: Path) -> None:
    database = image.open(tmp_path, image.data[: image.ends[20] - 9])
    database.write({b"first": bytes([99]) * 10, b"second": bytes([99]) * 10}, sync=True)
    database.close()
    assert survivors(Database(tmp_path / "copy")) == 100
