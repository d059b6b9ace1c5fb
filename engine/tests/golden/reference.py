#!/usr/bin/env python3
"""Golden log-probabilities: transformers in float32 on the same GGUF file that kvtier loads.

Eight prompts of 16 to 4,000 tokens. For each: `tokens` (N ids), `logprob` (N-1, natural log-probability of each
next token, teacher-forced) and `top1` (N-1, the most probable next token). Weights are the GGUF's, dequantised to
float32; the forward pass is float32 with eager attention; the log-softmax is taken in float64 over the float32
logits. Prompts of at most 512 tokens go to logprobs.json, longer ones to logprobs_long.json, beside this script.

    python3 -m venv v && v/bin/pip install torch==2.13.0 transformers==5.19.0 gguf==0.19.0 accelerate
    v/bin/python engine/tests/golden/reference.py MODEL.gguf

The prose comes from cli/assets/moby-dick.txt; the other texts are in this file.
"""
import argparse
import hashlib
import importlib.metadata as metadata
import json
import os
import platform
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

HERE = Path(__file__).resolve().parent
PROSE = HERE.parents[2] / "cli" / "assets" / "moby-dick.txt"
SHORT_TOKENS = 512

FACTS = "The capital of France is Paris. The capital of Italy is Rome, and the capital of Spain is Madrid."

DIALOGUE = """\
"Did you lock the door?" asked Mira.
"I thought you did," said Tom. "You had the key."
"I gave it to you at the station, remember? Right after the coffee."
"Oh no," he whispered. "It's in my other coat."
"""

NUMBERS = """\
year,population,area_km2
1790,3929214,2239692
1850,23191876,7691368
1900,76212168,7691368
1950,151325798,9161923
2020,331449281,9147593
3.14159 2.71828 1.41421 -40 1e-9 0x7F
"""

CODE = """\
/// Returns the n-th Fibonacci number, or `None` on overflow.
pub fn fibonacci(n: u32) -> Option<u64> {
    let (mut a, mut b) = (0u64, 1u64);
    for _ in 0..n {
        let next = a.checked_add(b)?;
        a = b;
        b = next;
    }
    Some(a)
}

#[cfg(test)]
mod tests {
    use super::fibonacci;

    #[test]
    fn first_values() {
        let found: Vec<u64> = (0..10).filter_map(fibonacci).collect();
        assert_eq!(found, [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]);
    }
}
"""

MIXED = """\
# Trip notes \U0001f9f3

| day | km | cost |
|-----|-----|--------|
| Mon | 412 | $37.50 |
| Tue | 98  | $12.05 |

Le lendemain, nous sommes allés à la plage; l'eau était très froide. Am Abend gab es Brötchen und Käse.
東京の天気は晴れです。Сегодня хорошая погода. \U0001f60a\U0001f3d6\ufe0f

```python
def total(rows):
    return round(sum(cost for _, _, cost in rows), 2)

print(total([("Mon", 412, 37.50), ("Tue", 98, 12.05)]))  # 49.55
```

Q: How far is it from the harbour to the lighthouse?
A: About 3 1/2 miles, if you follow the path along the cliff.
"""


def prompts(tokenizer):
    """Name and exactly N token ids per prompt, in order of length."""
    prose = PROSE.read_text(encoding="utf-8")
    chapter = {n: prose.index(f"CHAPTER {n}.") for n in (1, 2, 3)}
    texts = [
        ("facts", 16, FACTS),
        ("dialogue", 40, DIALOGUE),
        ("numbers", 64, NUMBERS),
        ("code", 128, CODE),
        ("prose", 256, prose[chapter[2]:]),
        ("mixed", 512, MIXED + prose[chapter[3]:]),
        ("long prose", 1500, prose[chapter[1]:]),
        ("longest", 4000, CODE + prose[chapter[2]:] + NUMBERS + prose[chapter[1]:]),
    ]
    for name, count, text in texts:
        ids = tokenizer(text, add_special_tokens=False).input_ids[:count]
        assert len(ids) == count, f"{name}: {len(ids)} tokens, wanted {count}"
        yield name, ids


def score(model, ids):
    """Log-probability of each next token and the most probable one; N-1 of each."""
    with torch.inference_mode():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
        assert logits.dtype == torch.float32
        logprob, top1 = [], []
        for start in range(0, len(ids) - 1, 256):
            rows = logits[start:min(start + 256, len(ids) - 1)].double().log_softmax(-1)
            targets = torch.tensor(ids[start + 1:start + 1 + rows.shape[0]])
            logprob += rows.gather(1, targets[:, None])[:, 0].tolist()
            top1 += rows.argmax(-1).tolist()
    return [round(value, 7) for value in logprob], top1


def load(path):
    """The model in float32 and its tokenizer, both from the GGUF, after a check that the loader understood it."""
    folder, name = str(path.parent), path.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32, attn_implementation="eager").eval()
    assert all(p.dtype == torch.float32 for p in model.parameters())
    ids = tokenizer("The capital of France is", add_special_tokens=False).input_ids
    with torch.inference_mode():
        following = tokenizer.decode(model(torch.tensor([ids])).logits[0, -1].argmax())
    assert following == " Paris", f"greedy continuation is {following!r}: the weights were not read as meant"
    return model, tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="the GGUF file")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = load(args.model.resolve())
    config = model.config
    print(f"rope {getattr(config, 'rope_parameters', None)}, rms eps {config.rms_norm_eps}, "
          f"tied {config.tie_word_embeddings}", file=sys.stderr)
    made_with = {
        "model": args.model.name,
        "model_sha256": hashlib.sha256(args.model.read_bytes()).hexdigest(),
        "dtype": "float32",
        "attention": "eager",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "transformers", "gguf", "tokenizers", "numpy")},
    }
    files = {"logprobs.json": [], "logprobs_long.json": []}
    for name, ids in prompts(tokenizer):
        logprob, top1 = score(model, ids)
        mean = sum(logprob) / len(logprob)
        print(f"{name}: {len(ids)} tokens, perplexity {2.718281828459045 ** -mean:.3f}", file=sys.stderr)
        file = "logprobs.json" if len(ids) <= SHORT_TOKENS else "logprobs_long.json"
        files[file].append({"name": name, "tokens": ids, "logprob": logprob, "top1": top1})
    for file, found in files.items():
        lines = ",\n".join(json.dumps(prompt, separators=(",", ":")) for prompt in found)
        text = f'{{"made_with":{json.dumps(made_with)},\n"prompts":[\n{lines}\n]}}\n'
        (HERE / file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
