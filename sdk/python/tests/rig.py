"""What the tests share: a daemon of this package in a process of its own, and an engine that keeps its blocks in plain bytes."""

import hashlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest
from typing import Any

import kvtier

LAYERS = 3
# Of one layer of one engine block. No multiple of 8, so that nothing depends on it.
BLOCK_BYTES = 1001
PATIENCE = 60.0


class Daemon:
    """`python -m kvtier serve` with a store in a folder."""

    def __init__(self, folder: str, *options: str) -> None:
        self.socket = os.path.join(folder, "kvtier.sock")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KVTIER_")}
        # Nobody's settings but ours.
        environment["KVTIER_CONFIG"] = os.path.join(folder, "kvtier.toml")
        with open(environment["KVTIER_CONFIG"], "w") as settings:
            settings.write('client_staging = "256KiB"\n')
        command = [sys.executable, "-m", "kvtier", "serve", "--socket", self.socket, "--http", "off", "--host-mem", "32MiB"]
        self.process = subprocess.Popen([*command, *options], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: os.path.exists(self.socket) or self.process.poll() is not None, "the daemon's socket")
        assert self.process.poll() is None, self.process.communicate()[1]

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def end(self, by: signal.Signals = signal.SIGTERM) -> str:
        self.process.send_signal(by)
        _, log = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, (self.process.returncode, log)
        return log


def wait_until(is_so: Any, what: str) -> None:
    until = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < until, f"{what} does not come"
        time.sleep(0.005)


def manifest(**changes: Any) -> kvtier.Manifest:
    fields: dict[str, Any] = {
        "weights": b"\7" * 32,
        "architecture": "llama",
        "dtype": "bf16",
        "block_tokens": 16,
        "layers": LAYERS,
        "kv_heads": 2,
        "head_dim": 8,
        "numerics": "a test's engine",
    }
    return kvtier.Manifest(**{**fields, **changes})


def chain(name: str, blocks: int) -> list[bytes]:
    """Hashes of an engine's own, each made of the one before."""
    hashes: list[bytes] = []
    for _ in range(blocks):
        before = hashes[-1] if hashes else b""
        hashes.append(hashlib.sha256(name.encode() + before).digest())
    return hashes


class Case(unittest.TestCase):
    """A test with a folder, and daemons that go with it."""

    def setUp(self) -> None:
        # A socket's path is short.
        self.folder = tempfile.mkdtemp(prefix="kv-")
        self.daemons: list[Daemon] = []

    def tearDown(self) -> None:
        for daemon in self.daemons:
            daemon.kill()
        shutil.rmtree(self.folder)

    def serve(self, *options: str) -> Daemon:
        daemon = Daemon(self.folder, *options)
        self.daemons.append(daemon)
        return daemon

    def client(self, *, chunk: int = 1, layout: str = "plain", salt: str | None = None, **changes: Any) -> kvtier.Client:
        form = kvtier.Opaque(layer_bytes=chunk * BLOCK_BYTES, layout=layout)
        path = os.path.join(self.folder, "kvtier.sock")
        return kvtier.Client(path, manifest=manifest(**changes), form=form, salt=salt, deadline_ms=20_000)

    def raises(self, code: str, call: Any, *arguments: Any, **named: Any) -> kvtier.Error:
        with self.assertRaises(kvtier.Error) as caught:
            call(*arguments, **named)
        self.assertEqual(caught.exception.code, code, caught.exception)
        return caught.exception


class Engine:
    """Blocks in bytearrays, one a layer."""

    def __init__(self, blocks: int, gap: int = 0) -> None:
        self.stride = BLOCK_BYTES + gap
        self.layers = [bytearray(blocks * self.stride) for _ in range(LAYERS)]
        self.slabs = kvtier.Slabs(self.layers, block_bytes=BLOCK_BYTES, stride=self.stride)

    def fill(self, seed: int) -> None:
        for layer, slab in enumerate(self.layers):
            slab[:] = hashlib.shake_256(bytes([seed, layer])).digest(len(slab))

    def block(self, layer: int, block: int) -> bytes:
        return bytes(self.layers[layer][block * self.stride : block * self.stride + BLOCK_BYTES])

    def blocks(self, block: int) -> list[bytes]:
        return [self.block(layer, block) for layer in range(LAYERS)]


def delete_namespace(path: str, namespace: bytes) -> None:
    """Two frames of docs/protocol.md: Hello, and DeleteNamespace."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(PATIENCE)
        stream.connect(path)
        name = b"a test"
        for kind, body in [(1, struct.pack("<HHII", 1, 1, 0, len(name)) + name), (14, namespace)]:
            stream.sendall(struct.pack("<4sHHIIQII", b"kvt1", kind, 0, len(body), 0, kind, 0, 0) + body)
            header = stream.recv(32, socket.MSG_WAITALL)
            _, answered, _, length, status, _, _, _ = struct.unpack("<4sHHIIQII", header)
            assert (answered, status) == (kind, 0), (answered, status)
            stream.recv(length, socket.MSG_WAITALL)
