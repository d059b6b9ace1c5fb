"""Processes of the points: a daemon that can be stopped, killed and started again, and vLLM engines."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
READY_SECONDS = 30
ENGINE_SECONDS = 300


class Daemon:
    """`python -m kvtier serve` on a socket and a disk folder of its own."""

    def __init__(self, folder: Path, *, host: str = "256MiB", disk: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.socket = folder / "run" / "kvtier.sock"
        self.disk = folder / "disk"
        self.log = folder / "daemon.log"
        self.arguments = ["--socket", str(self.socket), "--host-mem", host, "--http", "off"]
        if disk:
            self.arguments += ["--disk", str(self.disk), "--disk-size", "512MiB"]
        self.process: subprocess.Popen | None = None

    def start(self) -> "Daemon":
        """Starts it and waits until it takes connections."""
        with open(self.log, "a") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "kvtier", "serve", *self.arguments], stdout=log, stderr=log)
        end = time.monotonic() + READY_SECONDS
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the daemon did not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.05)
        return self

    def answers(self) -> bool:
        """Whether somebody listens at the socket."""
        import socket

        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
        return True

    def stop(self) -> None:
        """An orderly end: what is queued for the disk is written."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """No orderly end."""
        self._end(signal.SIGKILL)

    def _end(self, with_what: signal.Signals) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(with_what)
            process.wait(60)

    def stats(self) -> dict:
        """Its figures."""
        return self._ask(lambda client: client.stats())

    def explain(self, request: str) -> dict:
        """What it remembers of a request."""
        return self._ask(lambda client: client.explain(request))

    def _ask(self, what: Callable[..., dict]) -> dict:
        """Asks by a client that opens no blocks of interest."""
        import kvtier

        manifest = kvtier.Manifest(weights=bytes(32), architecture="probe", dtype="u8", block_tokens=1, layers=1, kv_heads=1, head_dim=8)
        with kvtier.Client(str(self.socket), manifest=manifest, form=kvtier.Opaque(layer_bytes=4096, layout="probe")) as client:
            end = time.monotonic() + 5
            while not client.connected and time.monotonic() < end:
                time.sleep(0.02)
            return what(client)


class Engine:
    """A vLLM process with a script."""

    def __init__(
        self, folder: Path, name: str, model: str, connector: dict | None, script: list[dict], environment: dict | None = None, **more: object
    ) -> None:
        self.results = folder / f"{name}.results.json"
        self.log = folder / f"{name}.log"
        spec = {"model": model, "connector": connector, "script": script, "results": str(self.results), **more}
        path = folder / f"{name}.spec.json"
        path.write_text(json.dumps(spec))
        environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), **(environment or {})}
        with open(self.log, "w") as log:
            self.process = subprocess.Popen([sys.executable, str(HERE / "engine.py"), str(path)], stdout=log, stderr=log, env=environment)

    def finish(self) -> list:
        """The results of its script. Errors: `RuntimeError` with the end of its log when it failed or took too long."""
        try:
            code = self.process.wait(ENGINE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            code = "no answer in time"
        if code != 0:
            raise RuntimeError(f"engine ended with {code}: {self.log.read_text()[-3000:]}")
        return json.loads(self.results.read_text())["results"]

    def text(self) -> str:
        """Its log."""
        return self.log.read_text()
