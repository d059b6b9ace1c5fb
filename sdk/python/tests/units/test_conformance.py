"""The conformance kit finds each planted mistake by its name, and nothing in our own connector."""

import contextlib
import importlib
import inspect
import io
import json
import logging
import sys
import unittest
from pathlib import Path

from kvtier.conformance import __main__ as command
from kvtier.conformance import checks, interface, shape, stubs

REAL = Path(__file__).with_name("interface.json")


def planted():
    """The module of planted mistakes, imported with stand-ins for vLLM in place."""
    for name in [name for name in sys.modules if name.startswith("kvtier.vllm.connector") or name.endswith(".planted")]:
        del sys.modules[name]
    return importlib.import_module("units.planted")


class Planted(unittest.TestCase):
    def setUp(self):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        context = stubs.installed()
        context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        self.planted = planted()

    def broken(self, name, scenario, **extra):
        found = checks.check(getattr(self.planted, name), {f"kvtier.{key}": value for key, value in extra.items()}, 1, [scenario])
        return found[scenario].rules()

    def test_a_load_after_its_request_is_done(self):
        self.assertIn("load-after-finish", self.broken("LoadAfterFinish", "cancelled", load_async=True))

    def test_a_rank_that_is_not_in_the_key(self):
        self.assertEqual(self.broken("WrongRank", "stream"), {"wrong-rank"})

    def test_a_salt_that_is_dropped(self):
        self.assertEqual(self.broken("SaltDropped", "salts"), {"salt-dropped"})
        self.assertIn("salt-dropped", self.broken("SaltDropped", "stream"))

    def test_an_opaque_block_that_is_cut_by_tokens(self):
        self.assertIn("token-sliced", self.broken("TokenSliced", "hits"))

    def test_an_error_that_comes_a_step_late(self):
        self.assertIn("error-late", self.broken("ErrorLate", "failures"))

    def test_other_mistakes(self):
        wanted = {
            "StoresTooEarly": ("stream", "garbage-stored", {}),
            "SavesGarbage": ("failures", "garbage-stored", {}),
            "Forgetful": ("hits", "never-done", {"load_async": True}),
            "Greedy": ("hits", "whole-prompt", {}),
            "Scribbler": ("stream", "overwrites-computed", {}),
            "Idle": ("hits", "no-hits", {}),
            "Breaks": ("gone", "raises", {}),
        }
        for name, (scenario, rule, extra) in wanted.items():
            with self.subTest(name):
                self.assertIn(rule, self.broken(name, scenario, **extra))
        self.assertTrue(self.broken("BlindToFailures", "failures"))

    def test_our_own_connector_conforms(self):
        for extra in ({}, {"chunk_factor": 4}, {"chunk_factor": 2, "load_async": True}, {"layerwise": True}):
            for seed in (1, 2):
                given = {f"kvtier.{key}": value for key, value in extra.items()}
                found = checks.check(self.planted.KvtierConnector, given, seed)
                with self.subTest(extra, seed=seed):
                    self.assertEqual({name: [str(one) for one in findings.firsts()] for name, findings in found.items() if findings.found}, {})


class Connector(unittest.TestCase):
    """What vLLM asks of our connector beyond loads and saves."""

    def setUp(self):
        context = stubs.installed()
        context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        store_context = checks.install(checks.Daemon())
        store_context.__enter__()
        self.addCleanup(store_context.__exit__, None, None, None)
        self.make = planted().KvtierConnector
        self.names = ["layer.0", "layer.1"]

    def connector(self, config=None, cache=None, role=interface.KVConnectorRole.SCHEDULER):
        of = shape.Shape()
        config = config or shape.vllm_config(of, 0, self.names)
        return self.make(config, role, kv_cache_config=cache or shape.kv_cache_config(of, self.names))

    def test_a_policy_that_fails_requests_is_warned_of(self):
        config = shape.vllm_config(shape.Shape(), 0, self.names)
        with self.assertNoLogs("vllm.kvtier", logging.WARNING):
            self.connector(config)
        config.kv_transfer_config.kv_load_failure_policy = "fail"
        with self.assertLogs("vllm.kvtier", logging.WARNING) as told:
            self.connector(config)
        self.assertIn("kv_load_failure_policy", told.output[0])

    def test_an_engine_that_is_not_supported_serves_without(self):
        cache = shape.kv_cache_config(shape.Shape(), self.names)
        cache.kv_cache_groups = cache.kv_cache_groups * 2
        with self.assertLogs("vllm.kvtier", logging.ERROR) as told:
            scheduler = self.connector(cache=cache)
            worker = self.connector(cache=cache, role=interface.KVConnectorRole.WORKER)
            worker.register_kv_caches({})
        self.assertIn("2 groups", told.output[0])
        self.assertIsNone(worker.get_handshake_metadata())
        self.assertEqual(scheduler.get_num_new_matched_tokens(object(), 0), (0, False))
        output = interface.SchedulerOutput([], interface.CachedRequestData(), {}, 0)
        worker.bind_connector_metadata(scheduler.build_connector_meta(output))
        worker.start_load_kv(None)
        worker.wait_for_save()
        self.assertEqual((worker.get_finished(set()), worker.get_block_ids_with_load_errors()), ((None, None), set()))
        worker.shutdown()

    def test_a_saved_block_is_not_a_delivery(self):
        self.assertFalse(self.connector().requires_kv_delivery)
        self.assertTrue(self.make.requires_piecewise_for_cudagraph({"kvtier.layerwise": True}))
        self.assertFalse(self.make.requires_piecewise_for_cudagraph({}))

    def test_sources_add_up(self):
        connector = self.connector()
        connector._scheduler.sources = lambda request, tokens: {"host": 64, "disk": 32}
        source = sys.modules["vllm.v1.metrics.cache_hit_source"].CacheHitSource
        self.assertEqual(connector.get_external_cache_hit_sources(None, 96), {source.HOST: 64, source.DISK: 32})
        self.assertEqual(connector.get_external_cache_hit_sources(None, 100)[source.EXTERNAL_UNSPECIFIED], 4)

    def test_a_rank_without_blocks_means_no_hits(self):
        connector = self.connector()
        connector.set_xfer_handshake_metadata_pp_aware({(0, 0): None})
        self.assertEqual(connector._scheduler.ranks, [])

    def test_ranks_are_tensor_and_pipeline_ranks(self):
        ranks_of = sys.modules[self.make.__module__].ranks_of
        parallel = shape.vllm_config(shape.Shape(ranks=2), 0, self.names).parallel_config
        parallel.pipeline_parallel_size = 3
        found = []
        for parallel.rank in range(6):
            found.append(ranks_of(parallel))
        self.assertEqual([(rank["tensor"][0], rank["pipeline"][0]) for rank in found], [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)])
        self.assertEqual((found[0]["tensor"][1], found[0]["pipeline"][1]), (2, 3))


class Command(unittest.TestCase):
    def run_command(self, *arguments):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        for name in [name for name in sys.modules if name.startswith("kvtier.vllm.connector") or name.endswith(".planted")]:
            del sys.modules[name]
        told = io.StringIO()
        with contextlib.redirect_stdout(told):
            code = command.main(list(arguments))
        return code, told.getvalue()

    def test_exit_code_and_text(self):
        code, told = self.run_command("kvtier.vllm:KvtierConnector", "--seeds", "1", "--only", "hits")
        self.assertEqual((code, told.splitlines()[-1]), (0, "conforms"))
        code, told = self.run_command("units.planted:WrongRank", "--seeds", "1", "--only", "stream")
        self.assertEqual(code, 1)
        self.assertIn("wrong-rank: a block of another rank was loaded", told)

    def test_vllm_is_as_it_was_before(self):
        before = sys.modules.get("vllm")
        self.run_command("kvtier.vllm:KvtierConnector", "--seeds", "1", "--only", "salts")
        self.assertIs(sys.modules.get("vllm"), before)


def signatures(base):
    """Parameters of the public methods of a class, by name: (name, kind, whether there is a default)."""
    found = {}
    for name, member in sorted(vars(base).items()):
        if isinstance(member, property):
            found[name] = "property"
            continue
        function = member.__func__ if isinstance(member, classmethod) else member
        if inspect.isfunction(function) and (not name.startswith("_") or name == "__init__"):
            parameters = inspect.signature(function).parameters.values()
            found[name] = [[each.name, each.kind.name, each.default is not inspect.Parameter.empty] for each in parameters]
    return found


class Interface(unittest.TestCase):
    """The stand-ins have the signatures of vLLM 0.32; `cargo xtask vllm` compares the recorded ones with the installed vLLM."""

    def test_signatures_are_those_of_the_real_interface(self):
        real = json.loads(REAL.read_text())
        for name, wanted in real["classes"].items():
            self.assertEqual(signatures(getattr(interface, name)), wanted, name)

    def test_fields_are_those_of_the_real_ones(self):
        real = json.loads(REAL.read_text())
        for name, fields in real["fields"].items():
            ours = set(getattr(interface, name).__dataclass_fields__)
            self.assertLessEqual(ours, set(fields), f"{name} has fields that vLLM's has not")
        self.assertEqual({source.name: source.value for source in interface.CacheHitSource}, real["sources"])

    def test_the_connector_fits_the_next_version_whose_sources_were_read(self):
        next_one = json.loads(REAL.with_name("interface-0.33.json").read_text())
        with stubs.installed():
            connector = importlib.import_module("kvtier.vllm.connector").KvtierConnector
            ours = signatures(connector)
        theirs = {**next_one["classes"]["KVConnectorBase_V1"], **next_one["classes"]["SupportsHMA"]}
        self.assertGreater(len(ours), 20)
        for name, found in ours.items():
            self.assertIn(name, theirs, "a call that would never come")
            if found == "property":
                self.assertEqual(theirs[name], "property", name)
                continue
            # A default where vLLM has none is no harm.
            self.assertEqual([each[:2] for each in found], [each[:2] for each in theirs[name]], name)
        for name in ("KVConnectorOutput", "SchedulerOutput", "NewRequestData", "CachedRequestData", "KVConnectorBlockState"):
            used = set(getattr(interface, name).__dataclass_fields__)
            self.assertLessEqual(used, set(next_one["fields"][name]), name)
        self.assertEqual({source.name: source.value for source in interface.CacheHitSource}, next_one["sources"])


if __name__ == "__main__":
    unittest.main()
