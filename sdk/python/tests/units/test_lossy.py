"""Statements about where keys and values are, held against kernels that keep to them and kernels that do not."""

import unittest

from kvtier.vllm import lossy, settings
from kvtier.vllm.layout import Layout

HEADS, TOKENS, CHANNELS = 2, 24, 8
PART = TOKENS * CHANNELS
VEC = {
    "keys": {"first": 0, "heads": 2 * PART, "tokens": 1, "channels": TOKENS},
    "values": {"first": PART, "heads": 2 * PART, "tokens": CHANNELS, "channels": 1},
}
"""Heads, in each of them keys by channel and values by token: vLLM's for CPUs."""


def memory(dtype="bfloat16", block_bytes=4 * HEADS * PART):
    return Layout(("a",), ((4096, 1 << 20, None),), 9, TOKENS, block_bytes, block_bytes, HEADS, CHANNELS, dtype, "vec", "cpu", "words")


def kernel(layout):
    """A kernel that keeps to a layout."""
    sides = [lossy.places_of(lossy.Strides(**layout[side]), memory()) for side in lossy.SIDES]

    def written(keys, values):
        found = [0.0] * (2 * HEADS * PART)
        for places, numbers in zip(sides, (keys, values), strict=True):
            for place, number in zip(places, numbers, strict=True):
                found[place] = float(number)
        return found

    return written


def changed(side, **strides):
    return {**VEC, side: {**VEC[side], **strides}}


class Lossy(unittest.TestCase):
    def test_a_statement_that_the_kernel_keeps_to_holds(self):
        lossy.check(lossy.parse("i8h", VEC), memory(), kernel(VEC))

    def test_statements_that_look_alike_are_told_apart(self):
        """Each names every place once, and so fits as well as the true one until the kernel is asked."""
        by_token = {"first": 0, "heads": 2 * PART, "tokens": CHANNELS, "channels": 1}
        others = {
            "keys and values exchanged": {"keys": {**VEC["keys"], "first": PART}, "values": {**VEC["values"], "first": 0}},
            "keys by token": {**VEC, "keys": by_token},
            "values by channel": {**VEC, "values": {**VEC["keys"], "first": PART}},
            "heads exchanged with sides": {
                "keys": {**VEC["keys"], "heads": PART},
                "values": {**VEC["values"], "first": 2 * PART, "heads": PART},
            },
        }
        for what, layout in others.items():
            for stated, kept in ((layout, VEC), (VEC, layout)):
                with self.subTest(what), self.assertRaisesRegex(ValueError, "the engine does not keep the (keys|values) of token"):
                    lossy.check(lossy.parse("i8h", stated), memory(), kernel(kept))

    def test_only_one_element_elsewhere_is_found(self):
        written = kernel(VEC)

        def swapped(keys, values):
            found = written(keys, values)
            found[5], found[701] = found[701], found[5]
            return found

        with self.assertRaisesRegex(ValueError, "does not keep the keys of token 5, head 0, channel 0 at element 5"):
            lossy.check(lossy.parse("i8h", VEC), memory(), swapped)

    def test_statements_that_cannot_be_are_refused_before_anything_is_written(self):
        def never(keys, values):
            raise AssertionError("asked")

        for layout in (changed("keys", tokens=2), changed("values", first=0), changed("values", first=PART + 1), changed("keys", heads=1 << 31)):
            with self.subTest(layout), self.assertRaisesRegex(ValueError, "two elements in one place"):
                lossy.check(lossy.parse("i8h", layout), memory(), never)
        with self.assertRaisesRegex(ValueError, "made from bfloat16"):
            lossy.check(lossy.parse("i8h", VEC), memory(dtype="float16"), never)
        with self.assertRaisesRegex(ValueError, "has 384 elements, but its heads, tokens and channels make 768"):
            lossy.check(lossy.parse("i8h", VEC), memory(block_bytes=768), never)

    def test_settings_that_are_no_statement(self):
        for layout in (
            {"keys": VEC["keys"]},
            {**VEC, "scales": VEC["keys"]},
            {**VEC, "keys": {"first": 0, "heads": 1, "tokens": 1}},
            {**VEC, "keys": [0, 1, 2, 3]},
            changed("keys", heads=-1),
            changed("keys", heads=True),
            changed("keys", heads=1 << 32),
        ):
            with self.subTest(layout), self.assertRaises(ValueError):
                lossy.parse("i8h", layout)
        both = {"kvtier.form": "i8h", "kvtier.layout": VEC}
        self.assertEqual(settings.parse(both).layout, VEC)
        for name in both:
            with self.assertRaisesRegex(ValueError, "go together"):
                settings.parse({name: both[name]})
        with self.assertRaisesRegex(ValueError, "takes a table"):
            settings.parse({**both, "kvtier.layout": "vec"})
