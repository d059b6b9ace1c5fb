import unittest

from kvtier.vllm.plan import SKIP, Chunks, Match, load_rows, save_rows, targets, wanted

from .rig import hashes


class Plan(unittest.TestCase):
    def test_the_last_token_is_always_computed(self):
        for factor in (1, 4):
            chunks = Chunks(4, factor)
            for tokens in range(0, 100):
                usable = chunks.usable(tokens) * chunks.stored_tokens
                self.assertLess(usable, max(tokens, 1))
                self.assertEqual(usable, max(0, (tokens - 1)) // (4 * factor) * 4 * factor)

    def test_a_stored_block_has_the_hash_of_its_last_engine_block(self):
        chain = hashes(list(range(48)))
        span = Chunks(4, 4).span(chain, 1, 3)
        self.assertEqual((span.first, span.keys, span.parent), (1, (chain[7], chain[11]), chain[3]))
        self.assertIsNone(Chunks(4, 4).span(chain, 0, 1).parent)

    def test_a_span_ends_where_hashes_do(self):
        self.assertEqual(Chunks(4, 4).span(hashes(list(range(47))), 0, 9).keys, Chunks(4, 4).span(hashes(list(range(47))), 0, 2).keys)

    def test_a_straddled_block_is_asked_for_and_not_written_where_it_is_computed(self):
        chunks, tokens = Chunks(4, 4), 65
        chain = hashes(list(range(tokens)))
        table = list(range(100, 120))
        for local in range(0, 8):
            span = wanted(chunks, chain, tokens, local * 4)
            self.assertEqual(span.first, local // 4)
            match = Match(local * 4, span.first, ("host",) * len(span.keys))
            self.assertEqual(match.tokens(chunks), 64 - local * 4)
            first, rows = load_rows(chunks, table, local * 4, 64 - local * 4)
            self.assertEqual(first, local // 4)
            self.assertEqual(targets(rows), set(table[local:16]))
            parts = [part for row in rows for part in row]
            self.assertEqual(parts, [SKIP] * (local % 4) + table[local:16])

    def test_nothing_is_asked_for_when_all_is_here(self):
        chunks = Chunks(4, 2)
        chain = hashes(list(range(20)))
        self.assertIsNone(wanted(chunks, chain, 20, 16))
        self.assertIsNone(wanted(chunks, chain, 17, 18), "a local hit inside an engine block")
        self.assertIsNone(wanted(chunks, chain, 8, 0), "the only stored block has the last token")

    def test_tokens_by_tier_leave_out_the_local_part(self):
        match = Match(4, 0, ("host", "disk", "host"))
        self.assertEqual(match.by_tier(Chunks(4, 2), 20), {"host": 12, "disk": 8})
        self.assertEqual(match.by_tier(Chunks(4, 2), 8), {"host": 4, "disk": 4})

    def test_a_load_that_does_not_fit_the_table_is_refused(self):
        for local, tokens in ((0, 7), (2, 8), (0, 24)):
            with self.assertRaises(ValueError):
                load_rows(Chunks(4, 2), range(4), local, tokens)
        with self.assertRaises(ValueError):
            save_rows(Chunks(4, 2), range(3), 0, 2)


if __name__ == "__main__":
    unittest.main()
