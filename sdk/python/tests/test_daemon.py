"""Daemons that are not there, that end, and that come again; identities that never meet; forks."""

import os
import signal
import subprocess
import sys
import threading
import time
import unittest
from typing import Any

import kvtier
from rig import PATIENCE, Case, Engine, chain, wait_until


class Daemons(Case):
    def test_a_daemon_that_is_absent_dies_and_comes_again(self) -> None:
        hashes, engine = chain("a", 2), Engine(2)
        with self.client() as client:
            self.assertFalse(client.connected)
            self.raises("not_connected", client.lookup, hashes)
            self.raises("not_connected", client.store, hashes, engine.slabs, [[0], [1]])
            self.raises("not_connected", client.load, hashes, engine.slabs, [[0], [1]])
            self.raises("not_connected", client.acquire, hashes)
            self.raises("not_connected", client.reserve, hashes)
            self.raises("not_connected", client.stats)
            daemon = self.serve()
            wait_until(lambda: client.connected, "the connection")
            self.assertEqual(client.store(hashes, engine.slabs, [[0], [1]]), ["inserted"] * 2)
            leases, places = client.acquire(hashes), client.reserve(chain("b", 1))
            memoryview(places[0])[:] = bytes(len(places[0]))
            daemon.kill()
            self.raises("not_connected", client.lookup, hashes)
            self.assertTrue(leases[0].is_current(), "what was leased stays readable")
            self.assertEqual(bytes(leases[0]), b"".join(engine.blocks(0)))
            self.raises("not_connected", places.commit)
            self.serve()
            wait_until(lambda: client.connected, "the connection")
            self.assertEqual(len(client.lookup(hashes)), 0, "another daemon")
            leases.release()
            places.abort()
            self.assertEqual(client.store(hashes, engine.slabs, [[0], [1]]), ["inserted"] * 2)

    def test_blocks_outlive_the_daemon_on_its_disk(self) -> None:
        store = ["--disk", os.path.join(self.folder, "store"), "--disk-size", "64MiB"]
        hashes, engine, again = chain("a", 3), Engine(3), Engine(3)
        engine.fill(6)
        daemon = self.serve(*store)
        with self.client() as client:
            client.store(hashes, engine.slabs, [[0], [1], [2]])
        daemon.end()
        self.serve(*store)
        with self.client() as client:
            # The store's index is read behind the start.
            wait_until(lambda: client.lookup(hashes).miss is None, "the store's index")
            self.assertEqual(client.lookup(hashes).tiers, ["disk"] * 3)
            loaded = client.load(hashes, again.slabs, [[0], [1], [2]])
            self.assertEqual((loaded.tiers, loaded.miss), (["disk"] * 3, None))
            self.assertEqual(again.layers, engine.layers)
            self.assertEqual(client.lookup(hashes).tiers, ["host"] * 3)
            self.assertEqual(client.prefetch(hashes), 3)

    def test_other_identities_never_meet(self) -> None:
        self.serve()
        hashes, engine = chain("a", 1), Engine(4)
        with self.client() as client:
            client.store(hashes, engine.slabs, [[0]])
            self.assertEqual(len(client.lookup(hashes)), 1)
            namespace = client.namespace
            self.assertEqual(len(namespace), 32)
        namespaces = {namespace}
        cases: list[dict[str, Any]] = [
            {"layout": "other"},
            {"dtype": "f16"},
            {"tensor_parallel": (1, 2)},
            {"tensor_parallel": (0, 2)},
            {"pipeline": (0, 2)},
            {"salt": "tenant"},
            {"salt": ""},
            {"weights": b"\x08" * 32},
            {"block_tokens": 32},
            {"adapter": "lora"},
            {"rope_base": 10_000.0},
            {"numerics": "another engine"},
            {"chunk": 2},
        ]
        for changes in cases:
            with self.subTest(changes), self.client(**changes) as other:
                self.assertEqual(other.lookup(hashes).tiers, [])
                # Nobody learns what another tenant has.
                miss = "never_stored" if "salt" in changes else "namespace"
                self.assertEqual(other.lookup(hashes).miss, miss)
                namespaces.add(other.namespace)
        self.assertEqual(len(namespaces), 14)
        with self.client() as client:
            self.assertEqual(client.namespace, namespace)
            self.assertEqual(len(client.lookup(hashes)), 1)

    def test_a_request_is_explained(self) -> None:
        self.serve()
        hashes, engine = chain("a", 2), Engine(2)
        with self.client() as client:
            client.store(hashes[:1], engine.slabs, [[0]])
            client.tag("request 7")
            client.load(hashes, engine.slabs, [[0], [1]])
            client.tag("")
            told = client.explain("request 7")
        blocks = [(block["position"], block["tier"], block["reason"]) for block in told["blocks"]]
        self.assertEqual(blocks, [(0, "host", None), (1, None, "never_stored")])

    def test_a_forked_process_leaves_its_parents_connection_alone(self) -> None:
        self.serve()
        hashes, engine = chain("a", 1), Engine(1)
        with self.client() as client:
            client.store(hashes, engine.slabs, [[0]])
            leases, places = client.acquire(hashes), client.reserve(chain("b", 1))
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    self.assertFalse(client.connected)
                    self.raises("forked", client.lookup, hashes)
                    self.raises("forked", client.store, hashes, engine.slabs, [[0]])
                    self.raises("forked", places.commit)
                    del places
                    leases.release()
                    client.close()
                    with self.client() as own:
                        self.assertEqual(len(own.lookup(hashes)), 1)
                    code = 0
                finally:
                    os._exit(code)
            _, status = os.waitpid(child, 0)
            self.assertEqual(os.waitstatus_to_exitcode(status), 0)
            self.assertTrue(leases[0].is_current())
            stats = client.stats()
            self.assertEqual((stats["leases"]["count"], stats["reservations"]), (1, 1))

    def test_other_threads_run_while_a_call_waits(self) -> None:
        daemon = self.serve()
        hashes = chain("a", 1)
        with self.client() as client:
            client.lookup(hashes)
            ticks, done = [0], threading.Event()

            def call() -> None:
                try:
                    client.lookup(hashes)
                finally:
                    done.set()

            daemon.process.send_signal(signal.SIGSTOP)
            _, status = os.waitpid(daemon.process.pid, os.WUNTRACED)
            self.assertTrue(os.WIFSTOPPED(status))
            caller = threading.Thread(target=call)
            caller.start()
            try:
                # The call cannot end before the daemon goes on, which this thread decides.
                while ticks[0] < 1_000:
                    ticks[0] += 1
                    time.sleep(0)
                self.assertFalse(done.is_set())
            finally:
                daemon.process.send_signal(signal.SIGCONT)
            caller.join(PATIENCE)
            self.assertTrue(done.is_set())

    def test_signals_end_the_daemon_in_good_order(self) -> None:
        for by in [signal.SIGTERM, signal.SIGINT]:
            daemon = self.serve()
            with self.client() as client:
                self.assertTrue(client.connected)
            log = daemon.end(by)
            self.assertNotIn("Traceback", log)
            self.assertFalse(os.path.exists(daemon.socket))

    def test_serve_as_a_function(self) -> None:
        self.raises("serve", kvtier.serve, ["--host-mem", "much"])
        self.raises("serve", kvtier.serve, ["--no-such-option"])
        kvtier.serve(["--help"])
        code = "import kvtier, sys; kvtier.serve(['--socket', sys.argv[1], '--http', 'off', '--host-mem', '32MiB'])"
        path = os.path.join(self.folder, "kvtier.sock")
        process = subprocess.Popen([sys.executable, "-c", code, path], stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: os.path.exists(path), "the socket")
            with self.client() as client:
                self.assertEqual(client.stats()["leases"]["count"], 0)
        finally:
            process.terminate()
            self.assertEqual(process.wait(PATIENCE), 0)


class CommandLine(Case):
    def run_words(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kvtier", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)

    def test_options_output_and_exit_codes_are_those_of_kvtier_serve(self) -> None:
        wrong = self.run_words("serve", "--disk-size", "lots")
        self.assertEqual((wrong.returncode, wrong.stdout), (2, ""))
        self.assertTrue(wrong.stderr.startswith("kvtier: "), wrong.stderr)
        self.assertEqual(self.run_words("sreve").returncode, 2)
        printed = self.run_words("serve", "--print-config", "--host-mem", "48MiB")
        self.assertEqual((printed.returncode, printed.stderr), (0, ""))
        self.assertIn("48MiB", printed.stdout)
        self.assertEqual(self.run_words("--version").stdout.split(), ["kvtier", kvtier.__version__])
        self.assertIn("--check-config", self.run_words("serve", "--help").stdout)

    def test_a_second_daemon_touches_nothing(self) -> None:
        daemon = self.serve()
        second = self.run_words("serve", "--socket", daemon.socket, "--http", "off", "--host-mem", "32MiB")
        self.assertEqual(second.returncode, 2, second.stderr)
        with self.client() as client:
            self.assertTrue(client.connected)


if __name__ == "__main__":
    unittest.main()
