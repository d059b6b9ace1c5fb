"""`kvtier.llama_cpp` between a real daemon and stand-ins for llama-cpp-python 0.3.36's classes."""

import importlib
import inspect
import os
import subprocess
import sys
import tempfile
import time
import types
import unittest
from abc import ABC, abstractmethod
from pathlib import Path

import numpy


class BaseLlamaCache(ABC):
    def __init__(self, capacity_bytes=2 << 30):
        self.capacity_bytes = capacity_bytes

    @property
    @abstractmethod
    def cache_size(self): ...

    def _find_longest_prefix_key(self, key): ...

    @abstractmethod
    def __getitem__(self, key): ...

    @abstractmethod
    def __contains__(self, key): ...

    @abstractmethod
    def __setitem__(self, key, value): ...


class LlamaState:
    def __init__(self, input_ids, scores, n_tokens, llama_state, llama_state_size, seed):
        self.input_ids, self.scores, self.n_tokens = input_ids, scores, n_tokens
        self.llama_state, self.llama_state_size, self.seed = llama_state, llama_state_size, seed


def stand_ins():
    package, cache, llama = (types.ModuleType(name) for name in ("llama_cpp", "llama_cpp.llama_cache", "llama_cpp.llama"))
    package.__version__, cache.BaseLlamaCache, llama.LlamaState = "0.3.36", BaseLlamaCache, LlamaState
    return {module.__name__: module for module in (package, cache, llama)}


class Engine:
    """What is read of a `Llama`."""

    _logits_all = False
    context_params = types.SimpleNamespace(n_ctx=2048)

    def __init__(self, path):
        self.model_path = str(path)
        self.scores = numpy.zeros((512, 100), dtype=numpy.single)


def state(tokens, size=3_000_000, seed=7):
    ids = numpy.zeros(2048, dtype=numpy.intc)
    ids[: len(tokens)] = tokens
    data = (bytes(str(tokens[-1]), "ascii") * size)[:size]
    return LlamaState(ids, numpy.ones((min(len(tokens), 512), 100), dtype=numpy.single), len(tokens), data, size, seed)


class Sessions(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        os.environ["XDG_CACHE_HOME"] = str(self.folder / "cache")
        self.addCleanup(os.environ.pop, "XDG_CACHE_HOME")
        (self.folder / "model.gguf").write_bytes(b"weights")
        sys.modules.update(stand_ins())
        self.addCleanup(lambda: [sys.modules.pop(name) for name in [*stand_ins(), "kvtier.llama_cpp"]])
        self.module = importlib.import_module("kvtier.llama_cpp")
        self.socket = self.folder / "run" / "kvtier.sock"
        words = ["serve", "--socket", str(self.socket), "--host-mem", "512MiB", "--http", "off"]
        self.log = open(self.folder / "log", "w")
        self.addCleanup(self.log.close)
        self.daemon = subprocess.Popen([sys.executable, "-m", "kvtier", *words], stdout=self.log, stderr=self.log)
        self.addCleanup(self.end)

    def end(self):
        self.daemon.terminate()
        self.daemon.wait(30)

    def cache(self, **more):
        cache = self.module.KvtierCache(Engine(self.folder / "model.gguf"), socket=str(self.socket), **more)
        self.addCleanup(cache.close)
        end = time.monotonic() + 30
        while not (cache._pages.connected and cache._pieces.connected):
            self.assertLess(time.monotonic(), end, "no daemon")
            time.sleep(0.02)
        return cache

    def test_a_state_comes_back_whole_in_another_cache(self):
        tokens = list(range(1000))
        one, other = self.cache(), self.cache()
        self.assertNotIn(tokens, other)
        one[tokens] = state(tokens)
        self.assertIn(tokens, other)
        found, wanted = other[tokens], state(tokens)
        self.assertEqual((found.n_tokens, found.llama_state_size, found.seed), (1000, 3_000_000, 7))
        self.assertEqual(found.llama_state, wanted.llama_state)
        self.assertEqual(found.input_ids.tolist(), wanted.input_ids.tolist())
        self.assertEqual((found.scores.shape, found.scores.dtype), (wanted.scores.shape, wanted.scores.dtype))
        self.assertEqual(one.cache_size, 3 << 20)

    def test_a_longer_prompt_and_one_that_parts_find_the_common_beginning(self):
        tokens, cache = list(range(1000)), self.cache()
        cache[tokens] = state(tokens)
        self.assertEqual(cache[tokens + [1, 2, 3]].n_tokens, 1000)
        self.assertEqual(cache[tokens[:600] + [9] * 900].n_tokens, 1000, "llama-cpp-python goes on from where they part")
        for other in (tokens[:255], [5, *tokens], []):
            with self.assertRaises(KeyError):
                cache[other]

    def test_strangers_find_nothing(self):
        tokens, cache = list(range(600)), self.cache()
        cache[tokens] = state(tokens)
        (self.folder / "model.gguf").write_bytes(b"others!")
        for stranger in (self.cache(salt="other"), self.cache(), self.cache(model_id="x")):
            self.assertNotIn(tokens, stranger)

    def test_nothing_is_raised_without_a_daemon(self):
        tokens, cache = list(range(600)), self.cache()
        self.end()
        cache[tokens] = state(tokens)
        self.assertNotIn(tokens, cache)
        with self.assertRaises(KeyError):
            cache[tokens]

    def test_too_large_a_state_and_every_tokens_logits_are_refused(self):
        tokens, cache = list(range(600)), self.cache(capacity_bytes=1000)
        cache[tokens] = state(tokens)
        self.assertNotIn(tokens, cache)
        engine = Engine(self.folder / "model.gguf")
        engine._logits_all = True
        with self.assertRaises(ValueError):
            self.module.KvtierCache(engine, socket=str(self.socket))

    def test_signatures_are_those_of_the_base(self):
        for name in ("__getitem__", "__contains__", "__setitem__"):
            ours = inspect.signature(getattr(self.module.KvtierCache, name)).parameters
            self.assertEqual(list(ours), list(inspect.signature(getattr(BaseLlamaCache, name)).parameters), name)


if __name__ == "__main__":
    unittest.main()
