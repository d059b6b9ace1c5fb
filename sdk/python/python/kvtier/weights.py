"""What a model's weights are: a digest over the SHA-256 of its files, computed once and remembered while the files do not change."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

logger = logging.getLogger("kvtier")

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
CHUNK_BYTES = 1 << 22


def weights_identity(model: Any, model_id: str | None) -> bytes:
    """A digest that equal weights share. Errors: `ValueError` when the files are not to be found and nothing was said instead."""
    if model_id is not None:
        return b"stated:" + hashlib.sha256(model_id.encode()).digest()
    files = weight_files(model)
    if not files:
        raise ValueError(f"no weight files of {model.model} are found here; say what they are with kvtier.model_id")
    known = Known(cache_path())
    sha = hashlib.sha256()
    for name, file in files:
        sha.update(name.encode() + b"\0" + known.sha256(file))
    known.keep()
    return b"files:" + sha.digest()


def weight_files(model: Any) -> list[tuple[str, Path]]:
    """The weight files of a model folder or of a hub snapshot on this machine, by name."""
    place = Path(model.model)
    if place.is_file():
        return [(place.name, place)]
    if not place.is_dir():
        found = snapshot(str(model.model), getattr(model, "revision", None))
        if found is None:
            return []
        place = found
    return sorted((file.name, file) for file in place.iterdir() if file.suffix in SUFFIXES)


def snapshot(name: str, revision: str | None) -> Path | None:
    """Where the hub's library has put a model. Never asks the hub."""
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:  # noqa: BLE001 - any reason means: not here
        return None


def cache_path() -> Path:
    """The file with what is known."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "kvtier" / "weights.json"


class Known:
    """SHA-256 of files, as long as device, inode, size and both times are as they were."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sums: dict[str, str] = {}
        self._is_new = False
        try:
            read = json.loads(path.read_text())
            self.sums = {str(key): str(value) for key, value in read.items() if len(bytes.fromhex(value)) == 32}
        except (OSError, ValueError, AttributeError, TypeError):
            pass

    def sha256(self, file: Path) -> bytes:
        """The file's digest."""
        before = stamp(file)
        if before in self.sums:
            return bytes.fromhex(self.sums[before])
        logger.info("kvtier: reading %s once, to know which weights it has", file)
        sha = hashlib.sha256()
        for chunk in chunks(file):
            sha.update(chunk)
        if stamp(file) != before:
            raise ValueError(f"{file} changed while it was read")
        self.sums[before] = sha.hexdigest()
        self._is_new = True
        return sha.digest()

    def keep(self) -> None:
        """Writes what is known, for the next start; a place that cannot be written is no error."""
        if not self._is_new:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False) as out:
                json.dump(self.sums, out)
            os.replace(out.name, self.path)
        except OSError as error:
            logger.info("kvtier: digests of weights are not remembered: %s", error)


def stamp(file: Path) -> str:
    """What changes when the file does."""
    found = file.stat()
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def chunks(file: Path) -> Iterable[bytes]:
    """The file's bytes."""
    with open(file, "rb") as source:
        while chunk := source.read(CHUNK_BYTES):
            yield chunk
