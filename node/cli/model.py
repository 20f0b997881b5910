"""``openledger model`` and ``openledger adapter``: what others trained, in and out. Imports torch only once it runs."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from node.cli.output import Exit, UsageError, add_example, add_json_argument, print_result
from node.errors import NodeError

if TYPE_CHECKING:
    from attribution.adapter import Adapter
    from attribution.importing.directory import Directory
    from attribution.importing.text import Tokenizer
    from attribution.model import Base

TOKENS = 2048
TOKENS_MAX = 1 << 17
THREADS_MAX = 256


class ImportFailed(NodeError):
    """What was to be read is not a model or an adapter that is supported; the message names the file or option."""


def configure_model(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``model``."""
    add_example(parser, "openledger model import SmolLM2-135M --text README.md --bits 14")
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    text = "quantise a Hugging Face model directory (Llama, Qwen2, Qwen3; safetensors) to a base"
    command = _command(kinds, "import", text)
    command.add_argument("folder", type=Path, metavar="DIR", help="the directory with config.json")
    command.add_argument(
        "--bits", type=int, choices=(7, 14), default=7, help="bits of a weight (default: 7); part of the hash"
    )
    text = "also compare perplexities, of the base and of the floats, on this UTF-8 text"
    command.add_argument("--text", type=Path, metavar="FILE", help=text)
    text = "read the text as one token a byte instead of by tokenizer.json"
    command.add_argument("--bytes", action="store_true", dest="by_bytes", help=text)
    text = f"how many tokens of the text to read (default: {TOKENS})"
    command.add_argument("--tokens", type=_count(TOKENS_MAX), default=TOKENS, metavar="N", help=text)
    text = "the token that begins every text, where config.json does not say it"
    command.add_argument("--bos", type=_count(1 << 18, 0), metavar="ID", help=text)
    text = "the token that ends every text, where config.json names none or several"
    command.add_argument("--eos", type=_count(1 << 18, 0), metavar="ID", help=text)
    text = "where the base goes (default: DIR's name in this folder); never over another base"
    command.add_argument("--out", type=Path, metavar="FILE", help=text)
    text = "put it among the bases of this node's home instead, so that the node holds it"
    command.add_argument("--home", type=Path, metavar="DIR", help=text)
    text = f"CPU threads, 1 to {THREADS_MAX} (default: 1); changes speed, never bits"
    command.add_argument("--threads", type=_count(THREADS_MAX), default=1, metavar="N", help=text)
    add_json_argument(command)
    add_example(
        command,
        "openledger model import SmolLM2-135M --text README.md",
        "openledger model import Qwen3-0.6B --bits 14 --home ~/.openledger",
    )
    command.set_defaults(run=run_model_import)


def configure_adapter(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``adapter``."""
    add_example(
        parser,
        "openledger adapter import my-lora --out my.adapter",
        "openledger adapter export my.adapter --out my-lora",
    )
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    text = "read a PEFT directory (LoRA, safetensors) into the bytes that are published"
    command = _command(kinds, "import", text)
    command.add_argument("folder", type=Path, metavar="DIR", help="the directory with adapter_config.json")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="never overwritten")
    add_example(command, "openledger adapter import my-lora --out my.adapter --base base.safetensors")
    command.set_defaults(run=run_adapter_import)
    _finish_adapter(command)
    text = "write published adapter bytes as a directory that PEFT loads"
    command = _command(kinds, "export", text)
    command.add_argument("file", type=Path, metavar="FILE", help="the adapter's bytes")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="never overwritten")
    add_example(command, "openledger adapter export my.adapter --out my-lora")
    command.set_defaults(run=run_adapter_export)
    _finish_adapter(command)


def _command(
    kinds: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    return kinds.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _finish_adapter(command: argparse.ArgumentParser) -> None:
    text = "the base's file: the adapter is held against its shapes, and none of its layers may be missing"
    command.add_argument("--base", type=Path, metavar="FILE", help=text)
    add_json_argument(command)


def run_model_import(parsed: argparse.Namespace) -> int:
    """Quantise, compare, write, show."""
    from attribution.importing.directory import open_directory, quantise_directory
    from attribution.machine import prepare

    if parsed.by_bytes and parsed.text is None:
        raise UsageError("--bytes says how --text is read; give a text")
    if parsed.out is not None and parsed.home is not None:
        raise UsageError("--out and --home both say where the base goes; give one")
    with _refusals():
        with open_directory(parsed.folder, parsed.bits, parsed.bos, parsed.eos) as directory:
            prepare("cpu", threads=parsed.threads)
            tokenizer, problem = _tokenizer(parsed.folder)
            ids = _ids(parsed, tokenizer, problem, directory.config.vocab_size)
            base = quantise_directory(directory)
            document: dict[str, object] = {
                "hash": base.hash.hex(),
                "bits": parsed.bits,
                "parameters": directory.parameters,
                "layers": base.config.num_hidden_layers,
                "positions": base.config.max_position_embeddings,
                "not_read": list(directory.weights.not_read),
                "tokenizer_sha256": tokenizer.digest.hex() if tokenizer is not None else None,
                "tokenizer_problem": problem or None,
            }
            if ids:
                document["perplexity"] = _perplexity(directory, base, ids)
        file = _target(parsed, base.hash)
        _write_base(base, file)
    document |= {"file": str(file), "file_bytes": file.stat().st_size}
    if tokenizer is not None:
        beside = file.with_suffix(".tokenizer.json")
        _write_bytes(beside, tokenizer.data)
        document["tokenizer_file"] = str(beside)
    print_result(document, parsed.as_json, "imported")
    return Exit.OK


def run_adapter_import(parsed: argparse.Namespace) -> int:
    """Read a PEFT directory and write the adapter's bytes."""
    from attribution.adapter import adapter_to_bytes, check_fits
    from attribution.importing.peft import read_peft

    with _refusals():
        base = _base(parsed.base)
        adapter = read_peft(parsed.folder, base.config.num_hidden_layers if base else None)
        if base is not None:
            check_fits(adapter, base)
        data = adapter_to_bytes(adapter)
    _write_bytes(parsed.out, data)
    print_result(_described(adapter, base, parsed.out), parsed.as_json, "imported")
    return Exit.OK


def run_adapter_export(parsed: argparse.Namespace) -> int:
    """Read an adapter's bytes and write a PEFT directory."""
    from attribution.adapter import BYTES_MAX, adapter_from_bytes, check_fits
    from attribution.importing.files import read_bytes
    from attribution.importing.peft import write_peft

    with _refusals():
        base = _base(parsed.base)
        adapter = adapter_from_bytes(read_bytes(parsed.file, BYTES_MAX))
        if base is not None:
            check_fits(adapter, base)
        write_peft(adapter, parsed.out, base.config.num_hidden_layers if base else None)
    print_result(_described(adapter, base, parsed.out), parsed.as_json, "exported")
    return Exit.OK


@contextmanager
def _refusals() -> Iterator[None]:
    """The engine's typed errors as an error of the command."""
    from attribution.errors import ExactError

    try:
        yield
    except ExactError as error:
        raise ImportFailed(str(error)) from error


def _tokenizer(folder: Path) -> tuple[Tokenizer | None, str]:
    """The directory's tokenizer, or None and why: a base is complete without one."""
    from attribution.importing.errors import ImportRefused
    from attribution.importing.text import read_tokenizer

    try:
        return read_tokenizer(folder), ""
    except ImportRefused as error:
        return None, str(error)


def _ids(
    parsed: argparse.Namespace, tokenizer: Tokenizer | None, problem: str, vocabulary: int
) -> tuple[int, ...]:
    from attribution.importing.text import read_text, text_ids

    if parsed.text is None:
        return ()
    if tokenizer is None and not parsed.by_bytes:
        raise ImportFailed(f"{problem}; with --bytes the text is read as one token a byte")
    ids = text_ids(read_text(parsed.text), None if parsed.by_bytes else tokenizer, vocabulary)
    if not ids:
        raise ImportFailed(f"{parsed.text.name} holds no token to measure on")
    return ids[: parsed.tokens]


def _perplexity(directory: Directory, base: Base, ids: tuple[int, ...]) -> dict[str, object]:
    from attribution.importing.perplexity import compare

    found = compare(directory, base, ids)
    return {
        "tokens": found.tokens,
        "quantised": _rounded(found.base_perplexity),
        "float": _rounded(found.float_perplexity),
        "quantised_loss": found.base_loss,
    }


def _rounded(value: float) -> float | None:
    """Six significant digits, more than a comparison on a few thousand tokens can carry; None if not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _target(parsed: argparse.Namespace, base_hash: bytes) -> Path:
    from node.home import open_home

    if parsed.home is not None:
        folder = open_home(parsed.home.absolute()).artefacts_path / "bases"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{base_hash.hex()}.safetensors"
    if parsed.out is not None:
        return Path(parsed.out)
    return Path(f"{parsed.folder.absolute().name}-{parsed.bits}bit.safetensors")


def _write_base(base: Base, file: Path) -> None:
    """Write the base, or leave the same one as it is. Raises ImportFailed for another file in its place."""
    from attribution.checkpoint import load_base, save_base
    from attribution.errors import BadModel

    if not file.exists():
        save_base(base, file)
        return
    try:
        same = load_base(file).hash == base.hash
    except BadModel:
        same = False
    if not same:
        raise ImportFailed(f"{file} exists and is not this base; nothing is overwritten")


def _write_bytes(file: Path, data: bytes) -> None:
    """Write a file that did not exist, whole or not at all, or leave it if it holds these bytes."""
    scratch = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        scratch.write_bytes(data)
        os.link(scratch, file)
    except FileExistsError:
        if not file.is_file() or file.stat().st_size != len(data) or file.read_bytes() != data:
            raise ImportFailed(f"{file} exists and holds something else; nothing is overwritten") from None
    finally:
        scratch.unlink(missing_ok=True)


def _base(file: Path | None) -> Base | None:
    from attribution.checkpoint import load_base

    return load_base(file) if file is not None else None


def _described(adapter: Adapter, base: Base | None, out: Path) -> dict[str, object]:
    return {
        "hash": adapter.hash.hex(),
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "rslora": adapter.rslora,
        "modules": len(adapter.modules),
        "base_hash": base.hash.hex() if base is not None else None,
        "out": str(out),
    }


def _count(most: int, least: int = 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"expected {least} to {most}, got {text[:80]!r}")
        return int(text)

    return parse
