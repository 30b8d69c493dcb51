"""The small model on disk: two Hugging Face checkpoints (the model and its SigLIP), and their checksums."""

import hashlib
from pathlib import Path
from typing import Any

from adatp.errors import InputError

FOLDER = Path(__file__).with_name("checkpoint")  # the model that comes with the package
_SUMS = "SHA256SUMS"


def save_checkpoint(folder: Path, model: Any, processor: Any, siglip: Any, tokenizer: Any) -> None:
    """Write model and SigLIP in float16, and the checksums of all files.

    Args:
        folder: folder to write to; `model` and `siglip` within it become checkpoints for `from_pretrained`.
        model, processor: the Video LLM and its processor.
        siglip, tokenizer: the SigLIP with the same vision tower, and its tokenizer.
    """
    model.half().save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    siglip.half().save_pretrained(folder / "siglip")
    tokenizer.save_pretrained(folder / "siglip")
    sums = [f"{_sum(folder / name)}  {name}\n" for name in _files(folder)]
    (folder / _SUMS).write_text("".join(sums))


def check(folder: Path) -> None:
    """Compare the files with their checksums.

    Raises:
        InputError: a file is missing, has changed, or has no checksum.
    """
    wanted = {
        name: own for own, _, name in (line.partition("  ") for line in (folder / _SUMS).read_text().splitlines())
    }
    found = {name: _sum(folder / name) for name in _files(folder)}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            state = "is missing" if name not in found else "does not match its checksum"
            raise InputError(f"the small model's {folder / name} {state}; restore it from the repository")


def _files(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != _SUMS
    )


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
