"""A name for the content of a model folder, found without reading gigabytes."""

import hashlib
from pathlib import Path

_WHOLE_BYTES = 64 * 2**20  # files up to this size are hashed whole
_NAMES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def fingerprint(folder: Path, dtype: str) -> str:
    """Changes with the weights, the tokenizer, the chat template or the dtype; 32 hex digits.

    Of a large file count its size, its time of change and its head, where safetensors names the
    tensors.
    """
    digest = hashlib.blake2b(dtype.encode(), digest_size=16)
    files = [folder / name for name in (*_NAMES, "chat_template.jinja")]
    for file in [*files, *sorted(folder.glob("*.safetensors"))]:
        if file.exists():
            digest.update(file.name.encode())
            _add(digest, file)
    return digest.hexdigest()


def _add(digest: "hashlib.blake2b", file: Path) -> None:
    status = file.stat()
    with file.open("rb") as content:
        if status.st_size <= _WHOLE_BYTES:
            digest.update(content.read())
        else:
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
            digest.update(content.read(2**20))
