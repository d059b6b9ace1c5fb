"""Tests of the parts in pure Python. They need no vLLM, no torch and no extension module: `python3 -m unittest discover -t . -s units`."""
