#!/usr/bin/env python3
"""Golden token ids: llama.cpp's tokenizer over 1 MB of mixed text with digits, emoji and invalid UTF-8.

    cargo xtask peer llama
    cargo run --release -p kvtier-engine --example mixed_text > mixed.txt
    python3 engine/tests/golden/tokens.py MODEL.gguf mixed.txt

Writes tokens.json beside this script: `text_sha256`, `text_bytes`, `count`, `ids_sha256` (over the ids as
little-endian u32) and `prefix_ids` (the first 200). No special token is added, and none is parsed out of the text.
With `--ids FILE` all ids are written there too, one a line, to find the first difference.
"""
import argparse
import ast
import hashlib
import json
import struct
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAM = HERE.parents[2] / "target" / "peer" / "llama" / "build" / "bin" / "llama-tokenize"
PREFIX = 200


def output(*command):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="the GGUF file")
    parser.add_argument("text", type=Path, help="the text, any bytes but NUL")
    parser.add_argument("--program", type=Path, default=PROGRAM, help="llama-tokenize")
    parser.add_argument("--ids", type=Path, help="write all ids here")
    args = parser.parse_args()
    text = args.text.read_bytes()
    assert b"\0" not in text, "the text has a NUL byte"
    found = output(args.program, "-m", args.model, "-f", args.text, "--ids", "--no-bos", "--no-parse-special",
                   "--no-escape").stdout
    ids = ast.literal_eval(found[found.index(b"["):].decode())
    version = output(args.program, "--version")
    version = (version.stdout + version.stderr).decode()
    version = next(line for line in version.splitlines() if line.startswith("version:"))
    golden = {
        "made_with": {
            "llama_cpp": version.removeprefix("version:").strip(),
            "package": "llama-cpp-python==0.3.36",
            "model": args.model.name,
            "model_sha256": hashlib.sha256(args.model.read_bytes()).hexdigest(),
        },
        "text_sha256": hashlib.sha256(text).hexdigest(),
        "text_bytes": len(text),
        "count": len(ids),
        "ids_sha256": hashlib.sha256(struct.pack(f"<{len(ids)}I", *ids)).hexdigest(),
        "prefix_ids": ids[:PREFIX],
    }
    lines = ",\n".join(f'"{key}":{json.dumps(value)}' for key, value in golden.items())
    (HERE / "tokens.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    if args.ids:
        args.ids.write_text("".join(f"{token}\n" for token in ids), encoding="utf-8")
    print(f"{len(text)} bytes, {len(ids)} tokens")


if __name__ == "__main__":
    main()
