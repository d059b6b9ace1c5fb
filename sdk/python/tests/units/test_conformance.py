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
from kvtier.conformance import checks, interface, stubs

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


if __name__ == "__main__":
    unittest.main()
