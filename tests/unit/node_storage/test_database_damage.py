"""A flipped bit anywhere in LevelDB's files is reported with what to do, or changes nothing; it is never read as data."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from node.storage.database import Database
from node.storage.errors import DatabaseCorrupt, DatabaseUnreadable

Content = dict[bytes, bytes]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Content]:
    """Three lives of a database, copied while the last was running: tables, manifest, and a log."""
    folder, rng, content = tmp_path_factory.mktemp("damage"), random.Random("damage"), {}
    for life in range(3):
        database = Database(folder / "live")
        for _ in range(80):
            key, value = b"s%03d" % rng.randrange(150), rng.randbytes(200)
            database.write({key: value}, sync=False)
            content[key] = value
        if life == 2:
            shutil.copytree(folder / "live", folder / "image")
        database.close()
    return folder / "image", content


def read_all(folder: Path, keys: Content) -> tuple[Content, Content]:
    """Everything, once by scanning and once by point reads."""
    database = Database(folder)
    try:
        points = {key: database.get(key) for key in keys}
        scanned = {b"s" + key: value for key, value in database.scan(b"s")}
        return scanned, {key: value for key, value in points.items() if value is not None}
    finally:
        database.close()


@pytest.mark.parametrize("pattern", ["*.ldb", "*.log", "MANIFEST-*", "CURRENT"])
def test_a_flipped_bit_is_reported_or_without_effect(
    written: tuple[Path, Content], tmp_path: Path, pattern: str
) -> None:
    image, content = written
    reported = 0
    name = max(image.glob(pattern)).name
    data = (image / name).read_bytes()
    offsets = range(0, len(data), max(1, len(data) // 40))
    # The end of the log may be taken for a torn write; the safety guard knows better (test_startup_guard.py).
    for offset in (offset for offset in offsets if pattern != "*.log" or offset < len(data) - 300):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(image, copy)
        damaged = bytearray(data)
        damaged[offset] ^= 0x10
        (copy / name).write_bytes(damaged)
        try:
            told = read_all(copy, content)
        except DatabaseCorrupt:
            reported += 1
        else:
            assert told == (content, content)
    assert reported >= len(offsets) // 2


@pytest.mark.parametrize("pattern", ["*.ldb", "MANIFEST-*", "CURRENT"])
def test_a_file_that_is_gone_or_cut_short_is_reported(
    written: tuple[Path, Content], tmp_path: Path, pattern: str
) -> None:
    image, content = written
    for cut in (True, False):
        copy = tmp_path / f"copy-{cut}"
        shutil.copytree(image, copy)
        path = max(copy.glob(pattern))
        if cut:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        else:
            path.unlink()
        for _ in range(2):  # and opening it once more does not make it whole by forgetting
            with pytest.raises((DatabaseCorrupt, DatabaseUnreadable), match="move it away and restart"):
                read_all(copy, content)


def test_a_scan_or_read_believes_no_block_whose_checksum_is_wrong(tmp_path: Path) -> None:
    value = bytes(2000)
    database = Database(tmp_path / "chain")
    database.write({b"s%03d" % number: value for number in range(50)}, sync=True)
    database.close()
    Database(tmp_path / "chain").close()  # moves the log into a table
    (table,) = (tmp_path / "chain").glob("*.ldb")
    data = bytearray(table.read_bytes())
    data[100] ^= 1
    table.write_bytes(data)
    again = Database(tmp_path / "chain")
    with pytest.raises(DatabaseCorrupt):
        list(again.scan(b"s"))
    with pytest.raises(DatabaseCorrupt):
        again.get(b"s000")
    again.close()


FILL = """
import sys
from pathlib import Path
from node.storage.database import Database
from node.storage.errors import DatabaseNotWritable

database = Database(Path(sys.argv[1]))
for number in range(1000):
    try:
        database.write({b"s%04d" % number: bytes(1000)}, sync=True)
    except DatabaseNotWritable as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    print(number, flush=True)
"""


def test_a_full_disk_ends_the_write_with_what_to_do_and_keeps_all_that_was_written(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: it cuts a write in its middle, as a full disk does."""
    command = ["prlimit", "--fsize=200000", sys.executable, "-c", FILL, str(tmp_path / "chain")]
    full = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert full.returncode == 1
    assert "is the disk full? Make room and start again" in full.stderr
    written = len(full.stdout.split())
    assert 100 < written < 200
    database = Database(tmp_path / "chain")
    assert [key for key, _ in database.scan(b"s")] == [b"%04d" % number for number in range(written)]
    database.write({b"s%04d" % written: b"goes on"}, sync=True)
    database.close()
