"""The extension module. Everything public is re-exported by `kvtier`."""

import os
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, final

from typing_extensions import Buffer

__version__: str

class Error(Exception):
    """Why a call was not done. A block that is not there is no error."""

    code: str
    """For programs: `not_connected`, `deadline`, `io`, `protocol`, `memory`, `usage`, `forked`, `closed`, `serve`, or `refused:` and the daemon's status."""

class _Dlpack(Protocol):
    def __dlpack__(self) -> Any: ...

@final
class Manifest:
    """Everything that two blocks must share to stand for each other, but for their layout and the tenant."""

    def __new__(
        cls,
        *,
        weights: bytes,
        architecture: str,
        dtype: str,
        block_tokens: int,
        layers: int,
        kv_heads: int,
        head_dim: int,
        tensor_parallel: tuple[int, int] = (0, 1),
        pipeline: tuple[int, int] = (0, 1),
        rope_dimensions: int = 0,
        rope_base: float = 0.0,
        rope_scaling: str = "",
        adapter: str = "",
        numerics: str = "",
    ) -> Self: ...
    @property
    def layers(self) -> int: ...
    @property
    def block_tokens(self) -> int: ...
    @property
    def dtype(self) -> str: ...

@final
class Opaque:
    """The form of blocks that only the engine can read: so many bytes a layer of one stored block, in a layout that words describe."""

    def __new__(cls, *, layer_bytes: int, layout: str) -> Self: ...
    @property
    def layer_bytes(self) -> int: ...
    @property
    def layout(self) -> str: ...

@final
class Lossy:
    """A lossy form (`i8h`, `kc4vt4` or a map of them) of blocks whose elements, bf16, are where the engine states.

    `keys` and `values` are (first, heads, tokens, channels): the element of a head, token and channel is number `first + head * heads + token * tokens +
    channel * channels` of a layer of an engine block of `block_tokens` tokens. Loaded blocks are what the form makes of them, and are never exact.
    """

    def __new__(
        cls,
        form: str,
        *,
        layer_bytes: int,
        layout: str,
        block_tokens: int,
        keys: tuple[int, int, int, int],
        values: tuple[int, int, int, int],
    ) -> Self: ...
    @property
    def form(self) -> str: ...
    @property
    def layer_bytes(self) -> int: ...
    @property
    def layout(self) -> str: ...

@final
class Slabs:
    """An engine's memory, one slab a layer. Engine block `b` of layer `l` is bytes `[b * stride, b * stride + block_bytes)` of slab `l`."""

    def __new__(
        cls,
        layers: Iterable[Buffer | _Dlpack | tuple[int, int, object]],
        *,
        block_bytes: int,
        stride: int | None = None,
        writable: bool = True,
    ) -> Self: ...
    @property
    def blocks(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def block_bytes(self) -> int: ...

@final
class Found:
    """The longest run of blocks that was found, or loaded."""

    @property
    def tiers(self) -> list[str]: ...
    @property
    def miss(self) -> str | None: ...
    def __len__(self) -> int: ...

@final
class Lease:
    """One block, read where it lies. The bytes are the block only if `is_current()` says so after the last read."""

    @property
    def tier(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    def __len__(self) -> int: ...
    def is_current(self) -> bool: ...
    def layer(self, layer: int) -> memoryview: ...
    def release(self) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

@final
class Leases:
    """The longest run that was there, leased until the `with` block ends and nothing looks at it any more."""

    @property
    def miss(self) -> str | None: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Lease: ...
    def __iter__(self) -> Iterator[Lease]: ...
    def load(self, slabs: Slabs, blocks: Sequence[Sequence[int]], *, layers: range | None = None) -> int: ...
    def release(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

@final
class Place:
    """A place for one block, to be written while its state is `reserved`."""

    @property
    def state(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    def __len__(self) -> int: ...
    def layer(self, layer: int) -> memoryview: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Reservations:
    """Places for a run of blocks. What is still reserved when the `with` block ends is given up."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Place: ...
    def __iter__(self) -> Iterator[Place]: ...
    def commit(self) -> list[str]: ...
    def abort(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

@final
class Client:
    """One connection to one daemon, for blocks of one namespace. Works without a daemon too: every call raises until there is one."""

    def __new__(
        cls,
        socket: str | os.PathLike[str] | None = None,
        *,
        manifest: Manifest,
        form: Opaque | Lossy,
        salt: str | None = None,
        name: str = "python",
        deadline_ms: int = 2000,
    ) -> Self: ...
    @property
    def connected(self) -> bool: ...
    @property
    def namespace(self) -> bytes: ...
    @property
    def slot_bytes(self) -> int: ...
    def lookup(self, hashes: Sequence[bytes], *, parent: bytes | None = None, depth: int = 0) -> Found: ...
    def prefetch(self, hashes: Sequence[bytes], *, parent: bytes | None = None, depth: int = 0) -> int: ...
    def load(
        self,
        hashes: Sequence[bytes],
        slabs: Slabs,
        blocks: Sequence[Sequence[int]],
        *,
        parent: bytes | None = None,
        depth: int = 0,
    ) -> Found: ...
    def store(
        self,
        hashes: Sequence[bytes],
        slabs: Slabs,
        blocks: Sequence[Sequence[int]],
        *,
        parent: bytes | None = None,
        depth: int = 0,
    ) -> list[str]: ...
    def prepare(self) -> None: ...
    def acquire(self, hashes: Sequence[bytes], *, parent: bytes | None = None, depth: int = 0) -> Leases: ...
    def reserve(self, hashes: Sequence[bytes], *, parent: bytes | None = None, depth: int = 0) -> Reservations: ...
    def stats(self) -> dict[str, Any]: ...
    def explain(self, request: str) -> dict[str, Any]: ...
    def tag(self, request: str) -> None: ...
    def give_back(self) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

def _run(words: Sequence[str]) -> tuple[int, str]: ...
