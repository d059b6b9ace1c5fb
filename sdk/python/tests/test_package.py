"""The package as such: what it imports, its types, the quick start of the README."""

import contextlib
import io
import os
import re
import subprocess
import sys
import unittest
from pathlib import Path

import kvtier
from rig import PATIENCE, Case

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "sdk" / "python"


def fenced(page: Path, heading: str, language: str) -> list[str]:
    """The blocks of a language in one section of a page."""
    text = page.read_text()
    section = text[text.index(f"\n{heading}\n") + 1 :]
    rest = section[len(heading) :]
    after = re.search(r"\n#{1,2} ", rest)
    section = rest[: after.start()] if after else rest
    return re.findall(rf"\n```{language}\n(.*?)```", section, re.DOTALL)


class Package(Case):
    def test_importing_it_imports_no_array_library(self) -> None:
        code = "import sys, kvtier; print(*sorted(set(sys.modules)))"
        imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)
        modules = {name.split(".")[0] for name in imported.stdout.split()}
        self.assertIn("kvtier", modules)
        self.assertEqual(modules & {"numpy", "torch", "numba", "vllm", "transformers", "llama_cpp", "urllib", "http", "requests"}, set())

    def test_nothing_in_it_names_numba(self) -> None:
        files = [path for path in (PACKAGE / "python").rglob("*.py*") if path.suffix in {".py", ".pyi"}]
        self.assertGreater(len(files), 2)
        self.assertEqual([path for path in files if re.search(r"^\s*(import|from)\s+numba\b", path.read_text(), re.MULTILINE)], [])

    def test_types_are_strict(self) -> None:
        """The core, these tests, and what imports no engine. Modules over an engine are checked with that engine's types (`cargo xtask vllm`), except for
        `llama_cpp`, whose engine is not there either."""
        source = PACKAGE / "python" / "kvtier"
        core = [str(source / name) for name in ["__init__.py", "__main__.py", "_kvtier.pyi"]]
        tests = sorted(str(path) for path in Path(__file__).parent.glob("*.py"))
        self.mypy("mypy", "--strict", "--no-incremental", *core)
        self.mypy("mypy", "--strict", "--no-incremental", *tests)
        engines = re.compile(r"^(import|from) (vllm|torch|transformers|llama_cpp)\b", re.MULTILINE)
        light = sorted(str(path) for path in source.rglob("*.py") if not engines.search(path.read_text()))
        self.assertTrue({"checks.py", "scheduler.py", "worker.py", "chain.py", "weights.py"} <= {Path(path).name for path in light})
        # Imports of engines inside of functions stand for anything.
        self.mypy("mypy", "--strict", "--no-incremental", "--ignore-missing-imports", "--follow-imports=silent", *light)

    def test_stubs_say_what_the_module_has(self) -> None:
        allowed = os.path.join(self.folder, "allowed")
        with open(allowed, "w") as file:
            # The first is the package's matter; the interpreter shows the second as an attribute from 3.12 on.
            file.write("kvtier._kvtier.__all__\nkvtier._kvtier.(Lease|Place).__buffer__\n")
        words = ["--ignore-disjoint-bases", "--allowlist", allowed, "--ignore-unused-allowlist"]
        self.mypy("mypy.stubtest", *words, "kvtier._kvtier")

    def mypy(self, module: str, *words: str) -> None:
        # In the folder of these tests: in the package's own, the checkout would stand in for what is installed.
        environment = {**os.environ, "MYPY_CACHE_DIR": os.path.join(self.folder, "mypy")}
        told = subprocess.run(
            [sys.executable, "-m", module, *words],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env=environment,
            cwd=Path(__file__).parent,
        )
        self.assertEqual(told.returncode, 0, told.stdout + told.stderr)

    def test_the_quick_start_of_the_readme_runs(self) -> None:
        daemon = self.serve()
        (code,) = fenced(ROOT / "README.md", "## From Python", "python")
        (expected,) = fenced(ROOT / "README.md", "## From Python", "text")
        os.environ["KVTIER_SOCKET"] = daemon.socket
        try:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code, "README.md", "exec"), {})
        finally:
            del os.environ["KVTIER_SOCKET"]
        self.assertEqual(printed.getvalue(), expected)
        self.assertEqual(kvtier.Loaded, kvtier.Found)


if __name__ == "__main__":
    unittest.main()
