"""What makes two engines' blocks the same, and what is refused."""

import os
import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace

from kvtier import weights
from kvtier.vllm import identity, layout, settings


class Tensor:
    """What is read of a tensor."""

    def __init__(self, shape, strides, address=4096, dtype="torch.bfloat16"):
        self.shape, self.strides, self.address, self.dtype, self.device = shape, strides, address, dtype, "cpu"

    def data_ptr(self):
        return self.address

    def stride(self):
        return self.strides

    def element_size(self):
        return 2


def read(tensors, blocks=8):
    return layout.read(tensors, blocks=blocks, block_tokens=16, kv_heads=2, head_dim=4, backend="B")


class Layouts(unittest.TestCase):
    def test_blocks_first_and_dense(self):
        found = read({"a": Tensor((8, 2, 16, 8), (256, 128, 8, 1)), "b": Tensor((8, 2, 16, 8), (256, 128, 8, 1), 8192)})
        self.assertEqual((found.block_bytes, found.stride, found.names), (512, 512, ("a", "b")))
        self.assertEqual([slab[:2] for slab in found.slabs], [(4096, 4096), (8192, 4096)])
        self.assertEqual(found.address(1, 3), 8192 + 3 * 512)
        with self.assertRaises(IndexError):
            found.address(0, 8)

    def test_layers_inside_each_other(self):
        # All layers of a block side by side: the distance of blocks is that of all layers together.
        found = read({"a": Tensor((8, 2, 16, 8), (1024, 128, 8, 1)), "b": Tensor((8, 2, 16, 8), (1024, 128, 8, 1), 4096 + 512)})
        self.assertEqual((found.block_bytes, found.stride), (512, 2048))

    def test_a_permuted_block_is_another_layout(self):
        one = read({"a": Tensor((8, 2, 16, 8), (256, 128, 8, 1))})
        other = read({"a": Tensor((8, 2, 16, 8), (256, 8, 16, 1))})
        self.assertEqual(one.block_bytes, other.block_bytes)
        self.assertNotEqual(one.text, other.text)

    def test_what_is_not_one_run_of_bytes_is_refused(self):
        refused = {
            "keys and values apart": {"a": Tensor((2, 8, 16, 8), (1024, 128, 8, 1))},
            "holes": {"a": Tensor((8, 2, 16, 8), (512, 256, 8, 1))},
            "no dimension of blocks": {"a": Tensor((7, 2, 16, 8), (256, 128, 8, 1))},
            "layers of two shapes": {"a": Tensor((8, 2, 16, 8), (256, 128, 8, 1)), "b": Tensor((8, 4, 16, 8), (512, 128, 8, 1), 9)},
            "several tensors": {"a": [Tensor((8, 2), (2, 1))]},
            "nothing": {},
        }
        for why, tensors in refused.items():
            with self.subTest(why), self.assertRaises(ValueError):
                read(tensors)

    def test_shared_memory_appears_once(self):
        tensor = Tensor((8, 2, 16, 8), (256, 128, 8, 1))
        self.assertEqual(read({"a": tensor, "b": tensor}).names, ("a",))


def model(folder, **settings_of_model):
    config = SimpleNamespace(to_dict=lambda: {"hidden_size": 8, "_name_or_path": str(folder), **settings_of_model})
    return SimpleNamespace(model=str(folder), revision=None, hf_config=config, dtype="bfloat16", quantization=None, architectures=["Toy"])


def config(folder, *, block=16, cache_dtype="auto", algorithm="sha256", **settings_of_model):
    return SimpleNamespace(
        model_config=model(folder, **settings_of_model),
        cache_config=SimpleNamespace(block_size=block, cache_dtype=cache_dtype, prefix_caching_hash_algo=algorithm, enable_prefix_caching=True),
        parallel_config=SimpleNamespace(),
        speculative_config=None,
    )


class FullAttentionSpec(SimpleNamespace):
    pass


class SlidingWindowSpec(SimpleNamespace):
    pass


def groups(*specs):
    return SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=spec) for spec in specs], hash_block_size=None)


class Identities(unittest.TestCase):
    def setUp(self):
        self.home = tempfile.TemporaryDirectory()
        self.addCleanup(self.home.cleanup)
        self.folder = Path(self.home.name) / "model"
        self.folder.mkdir()
        (self.folder / "model.safetensors").write_bytes(b"weights")
        self.before = os.environ.get("XDG_CACHE_HOME")
        os.environ["XDG_CACHE_HOME"] = self.home.name
        self.addCleanup(self.restore)

    def restore(self):
        os.environ.pop("XDG_CACHE_HOME")
        if self.before is not None:
            os.environ["XDG_CACHE_HOME"] = self.before

    def identify(self, *, tensor=(0, 1), pipeline=(0, 1), factor=1, model_id=None, version="0.32.0", memory=None, **of):
        memory = memory or read({"a": Tensor((8, 2, 16, 8), (256, 128, 8, 1))})
        return identity.identify(
            config(self.folder, **of), memory, ranks={"tensor": tensor, "pipeline": pipeline}, factor=factor, model_id=model_id, version=version
        )

    def test_equal_engines_have_equal_identities(self):
        self.assertEqual(self.identify(), self.identify())

    def test_a_difference_in_anything_is_another_identity(self):
        base = self.identify()
        other = read({"a": Tensor((8, 2, 16, 8), (256, 8, 16, 1))})
        differences = {
            "tensor rank": self.identify(tensor=(1, 2)),
            "tensor size": self.identify(tensor=(0, 2)),
            "pipeline rank": self.identify(pipeline=(1, 2)),
            "factor": self.identify(factor=2),
            "stated weights": self.identify(model_id="x"),
            "version": self.identify(version="0.33.0"),
            "layout": self.identify(memory=other),
            "hash": self.identify(algorithm="sha256_cbor"),
            "cache dtype": self.identify(cache_dtype="fp8"),
            "settings of the model": self.identify(rope_theta=1.0),
        }
        (self.folder / "model.safetensors").write_bytes(b"others!")
        differences["weights of equal length"] = self.identify()
        for what, found in differences.items():
            self.assertNotEqual(base, found, what)
        self.assertEqual(len({repr(found) for found in differences.values()}), len(differences))

    def test_where_a_model_lies_does_not_count(self):
        base = self.identify()
        self.folder = self.folder.rename(self.folder.parent / "moved")
        self.assertEqual(base, self.identify())

    def test_files_are_read_once(self):
        self.identify()
        known = weights.Known(weights.cache_path())
        self.assertEqual(len(known.sums), 1)
        weights.cache_path().write_text("{not json")
        self.assertEqual(weights.Known(weights.cache_path()).sums, {})

    def test_weights_that_are_not_here_must_be_stated(self):
        (self.folder / "model.safetensors").unlink()
        with self.assertRaisesRegex(ValueError, "kvtier.model_id"):
            self.identify()
        self.assertNotEqual(self.identify(model_id="a").manifest["weights"], self.identify(model_id="b").manifest["weights"])

    def test_engines_that_hashes_do_not_describe_are_refused(self):
        full = FullAttentionSpec(block_size=16)
        good = config(self.folder)
        identity.check(good, groups(full))
        bad = {
            "two groups": (good, groups(full, full)),
            "a window": (good, groups(FullAttentionSpec(block_size=16, sliding_window=64))),
            "another kind": (good, groups(SlidingWindowSpec(block_size=16))),
            "another size": (good, groups(FullAttentionSpec(block_size=32))),
            "weak hashes": (config(self.folder, algorithm="xxhash"), groups(full)),
        }
        unhashed, drafted, spread = config(self.folder), config(self.folder), config(self.folder)
        unhashed.cache_config.enable_prefix_caching = False
        drafted.speculative_config = SimpleNamespace(method="eagle")
        spread.parallel_config.decode_context_parallel_size = 2
        scaled, dummy = config(self.folder), config(self.folder)
        scaled.cache_config.calculate_kv_scales = True
        dummy.load_config = SimpleNamespace(load_format="dummy")
        identity.check(dummy, groups(full), "said")
        bad.update({"scales of its own": (scaled, groups(full)), "random weights": (dummy, groups(full))})
        bad.update({"no hashes": (unhashed, groups(full)), "a draft model": (drafted, groups(full)), "a spread block": (spread, groups(full))})
        for why, (engine, cache) in bad.items():
            with self.subTest(why), self.assertRaises(identity.Unsupported):
                identity.check(engine, cache)


class Settings(unittest.TestCase):
    def test_names_and_values(self):
        found = settings.parse({"kvtier.chunk_factor": 4, "kvtier.load_async": True, "other": 1})
        self.assertEqual((found.chunk_factor, found.load_async, found.socket), (4, True, None))

    def test_a_typo_is_refused(self):
        for extra in ({"kvtier.chunk": 4}, {"kvtier.chunk_factor": 0}, {"kvtier.chunk_factor": True}, {"kvtier.load_async": 1}, {"kvtier.salt": 5}):
            with self.subTest(extra), self.assertRaises(ValueError):
                settings.parse(extra)


if __name__ == "__main__":
    unittest.main()
