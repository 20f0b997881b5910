"""`openledger model` and `openledger adapter`: what they print and write, and what they never write over."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from attribution.adapter import adapter_from_bytes, adapter_to_bytes
from attribution.checkpoint import load_base, save_base
from attribution.importing.directory import import_model, open_directory
from attribution.importing.perplexity import compare
from node.cli.main import main
from node.cli.output import Exit
from tests.unit.attribution.importing.importing_cases import FAMILIES, base_of, config_of, write_model
from tests.unit.attribution.importing.test_importing_text import bpe, write
from tests.unit.attribution.model_cases import tiny_adapter

FAMILY = "qwen3, tied, wide heads"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base without --out goes to the folder where the command runs."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "small", FAMILY)


def call(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = Exit.OK) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


@pytest.mark.parametrize("bits", [7, 14])
def test_import_prints_hash_and_size_and_writes_the_base(
    folder: Path, capsys: pytest.CaptureFixture[str], bits: int
) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    found = call(capsys, "model", "import", folder, "--bits", bits)
    base = load_base(Path(f"small-{bits}bit.safetensors"))
    assert found["hash"] == base.hash.hex() == base_of(config_of(FAMILY, bits)).hash.hex()
    assert found["file_bytes"] == Path(str(found["file"])).stat().st_size
    assert found["parameters"] == sum(t.numel() for n, t in base.tensors.items() if not n.endswith(".e"))
    assert found["not_read"] == ["pytorch_model.bin"]
    assert "perplexity" not in found
    assert found["tokenizer_sha256"] is None
    assert "there is no tokenizer.json" in found["tokenizer_problem"]
    again = call(capsys, "model", "import", folder, "--bits", bits)
    assert again == found


def test_perplexities_stand_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_model(tmp_path / "model", "llama, grouped heads", None)
    write(folder, bpe())
    text = tmp_path / "text"
    text.write_text("the that at the " * 40)
    refused = call(capsys, "model", "import", folder, "--text", text, code=Exit.FAILED)
    assert "the tokenizer gives token" in refused["error"]
    assert not list(tmp_path.glob("*.safetensors"))
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 259}
    larger = write_model(tmp_path / "larger", "llama, grouped heads", _weights(259), **config)
    write(larger, bpe())
    found = call(capsys, "model", "import", larger, "--text", text, "--tokens", 30)
    with open_directory(larger) as directory:
        ids = bpe_ids(larger, text.read_text())[:30]
        expected = compare(directory, import_model(larger), ids)
    shown = found["perplexity"]
    assert (shown["tokens"], shown["quantised_loss"]) == (30, expected.base_loss)
    assert shown["quantised"] == pytest.approx(expected.base_perplexity, rel=1e-5)
    assert shown["float"] == pytest.approx(expected.float_perplexity, rel=1e-5)
    assert shown["quantised"] == pytest.approx(shown["float"], rel=0.1)
    beside = Path(found["tokenizer_file"])
    assert beside.name == "larger-7bit.tokenizer.json"
    assert beside.read_bytes() == (larger / "tokenizer.json").read_bytes()
    assert found["tokenizer_sha256"] == hashlib.sha256(beside.read_bytes()).hexdigest()
    assert found["tokenizer_problem"] is None
    by_bytes = call(capsys, "model", "import", larger, "--text", text, "--bytes", "--tokens", 30)
    assert by_bytes["hash"] == found["hash"]
    assert by_bytes["perplexity"]["quantised_loss"] != shown["quantised_loss"]


def _weights(vocabulary: int) -> Any:
    from attribution.importing.architecture import model_config
    from tests.unit.attribution.importing.importing_cases import SIZES, float_weights

    return float_weights(
        model_config({**SIZES, **FAMILIES["llama, grouped heads"], "vocab_size": vocabulary})
    )


def bpe_ids(folder: Path, text: str) -> tuple[int, ...]:
    from attribution.importing.text import read_tokenizer

    return read_tokenizer(folder).encode(text)


def test_a_text_without_a_tokenizer_says_what_to_do(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text"
    text.write_text("words")
    refused = call(capsys, "model", "import", folder, "--text", text, code=Exit.FAILED)
    assert "there is no tokenizer.json" in refused["error"]
    assert "--bytes" in refused["error"]
    refused = call(capsys, "model", "import", folder, "--text", text, "--bytes", code=Exit.FAILED)
    assert "a vocabulary of 64" in refused["error"]
    text.write_text("")
    wide = write_model(tmp_path / "wide", "llama, grouped heads", _weights(256), vocab_size=256)
    refused = call(capsys, "model", "import", wide, "--text", text, "--bytes", code=Exit.FAILED)
    assert "no token" in refused["error"]


def test_nothing_is_written_over(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "base"
    first = call(capsys, "model", "import", folder, "--out", out)
    before = out.read_bytes()
    refused = call(capsys, "model", "import", folder, "--bits", 14, "--out", out, code=Exit.FAILED)
    assert refused["kind"] == "ImportFailed"
    assert "nothing is overwritten" in refused["error"]
    assert out.read_bytes() == before
    assert call(capsys, "model", "import", folder, "--out", out)["hash"] == first["hash"]
    out.write_bytes(b"something of the owner's")
    call(capsys, "model", "import", folder, "--out", out, code=Exit.FAILED)
    assert out.read_bytes() == b"something of the owner's"


def test_a_home_holds_what_was_imported_into_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = call(capsys, "model", "import", folder, "--home", tmp_path / "home", code=Exit.USAGE)
    assert "openledger init" in refused["error"]
    call(capsys, "init", "--home", tmp_path / "home", "--no-passphrase")
    (tmp_path / "home" / "genesis.json").write_text("{}")
    found = call(capsys, "model", "import", folder, "--home", tmp_path / "home")
    assert Path(found["file"]).name == f"{found['hash']}.safetensors"
    assert Path(found["file"]).parent.name == "bases"
    assert load_base(found["file"]).hash.hex() == found["hash"]


def test_an_option_that_is_not_supported_is_one_line_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_model(tmp_path / "m", FAMILY, rope_scaling={"rope_type": "yarn", "factor": 4.0})
    assert main(["model", "import", str(folder)]) == Exit.FAILED
    shown = capsys.readouterr().err
    assert "'yarn'; supported are default, linear and llama3" in shown
    assert len(shown.splitlines()) == 1


def test_an_adapter_goes_out_and_comes_back_with_its_hash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = base_of(config_of(FAMILY))
    adapter = tiny_adapter(base)
    save_base(base, tmp_path / "base")
    (tmp_path / "published").write_bytes(adapter_to_bytes(adapter))
    for more in ((), ("--base", tmp_path / "base")):
        out, back = tmp_path / f"peft{len(more)}", tmp_path / f"back{len(more)}"
        wrote = call(capsys, "adapter", "export", tmp_path / "published", "--out", out, *more)
        options = json.loads((out / "adapter_config.json").read_text())
        assert ("layers_to_transform" in options) is (not more)
        read = call(capsys, "adapter", "import", out, "--out", back, *more)
        assert read["hash"] == wrote["hash"] == adapter.hash.hex()
        assert read["base_hash"] == (base.hash.hex() if more else None)
        assert adapter_from_bytes(back.read_bytes()).hash == adapter.hash
        call(capsys, "adapter", "import", out, "--out", back, *more)
        refused = call(capsys, "adapter", "export", back, "--out", out, *more, code=Exit.FAILED)
        assert "nothing is overwritten" in refused["error"]
    (tmp_path / "taken").write_bytes(b"mine")
    call(capsys, "adapter", "import", tmp_path / "peft0", "--out", tmp_path / "taken", code=Exit.FAILED)
    assert (tmp_path / "taken").read_bytes() == b"mine"


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_base(base_of(config_of("llama, grouped heads")), tmp_path / "base")
    adapter = tiny_adapter(base_of(config_of(FAMILY)))
    (tmp_path / "published").write_bytes(adapter_to_bytes(adapter))
    refused = call(
        capsys, "adapter", "export", tmp_path / "published", "--out", tmp_path / "out", "--base",
        tmp_path / "base", code=Exit.FAILED,
    )  # fmt: skip
    assert "does not have the shape" in refused["error"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["model", "model import", "adapter", "adapter import", "adapter export"])
def test_every_subcommand_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    shown = capsys.readouterr().out
    assert f"\n  openledger {command}" in shown.partition("example")[2]
