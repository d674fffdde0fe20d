"""The parts of the comparison that compute: python3 -m unittest discover tests/gpu"""

import json
import pathlib
import statistics
import tempfile
import unittest

import material
from compare import options_of
from measure import reason
from operations import per_token_of
from results import Results, judged


class Material(unittest.TestCase):
    def test_rows_follow_from_their_seed_and_are_no_longer_than_asked(self):
        lengths = material.lengths(2000, 512, 3)
        self.assertEqual(lengths, material.lengths(2000, 512, 3))
        self.assertEqual(max(lengths), 512)
        self.assertLess(abs(statistics.median(lengths) - material.MIDDLE), 15)
        for task, fields in (("sft", ["instruction", "response"]), ("dpo", ["prompt", "chosen", "rejected"])):
            rows = list(material.rows(task, 5, 512, 3))
            self.assertEqual([list(row) for row in rows], [fields] * 5)

    def test_models_have_the_sizes_of_their_names(self):
        for name, billions in (("135m", 0.135), ("0.5b", 0.415), ("1b", 1.24), ("7b", 6.74)):
            self.assertLess(abs(material.values(material.SHAPES[name]) / 1e9 / billions - 1), 0.01, name)


class Operations(unittest.TestCase):
    def test_a_token_costs_four_operations_a_weight_and_more_in_longer_rows(self):
        shape = material.SHAPES["7b"]
        base = 4 * (material.values(shape) - 32000 * 4096)
        short, long = (per_token_of(shape, 32, [length] * 16) for length in (1, 512))
        self.assertLess(abs(short / base - 1), 0.01)
        self.assertEqual(round(long - short), 6 * 32 * 4096 * 511)


class Findings(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = pathlib.Path(self.folder.name) / "found.json"

    def test_rows_outlive_a_stop_and_belong_to_their_settings(self):
        Results(self.path, {"runs": 3}).add_measure("tokens/s 7b", "tokens/s", "7b", 30.0, {"a": 10.0, "b": 12.0})
        again = Results(self.path, {"runs": 3})
        self.assertTrue(again.has("tokens/s 7b"))
        self.assertEqual(json.loads(self.path.read_text())["rows"]["tokens/s 7b"]["ratio"], 2.5)
        with self.assertRaisesRegex(ValueError, "another comparison"):
            Results(self.path, {"runs": 1})

    def test_the_better_of_pytorchs_variants_counts(self):
        results = Results(None, {})
        results.add_measure("tokens/s 1b", "tokens/s", "1b", 30.0, {"a": 10.0, "b": 12.0})
        results.add_measure("memory 1b", "bytes", "1b", 3e9, {"a": 4e9, "b": 6e9})
        results.add_measure("memory 7b q4_0", "bytes", "7b", 13e9, {})
        best = [row["best"] for row in results.rows.values()]
        self.assertEqual(best, ["b", "a", None])
        self.assertIn("| 13.00 |  |  | 12 GB | missed |", results.table())

    def test_targets_are_met_or_missed_at_their_bounds(self):
        row = {"ratio": 2.0, "fleetune": 0.449}
        self.assertEqual(judged("tokens/s 7b", row)["met"], True)
        self.assertEqual(judged("share 7b", row)["met"], False)
        self.assertEqual(judged("tokens/s 7b", {"ratio": None})["met"], False)
        self.assertEqual(judged("tokens/s 1b", row)["met"], None)

    def test_a_comparison_without_a_number_fails(self):
        results = Results(None, {})
        checks = [{"name": name, "value": value, "tolerance": 0.0} for name, value in (("a", 0.0), ("b", float("inf")))]
        results.add_checks("correctness", checks)
        self.assertEqual([check["passed"] for check in results.checks()], [True, False])
        self.assertFalse(results.passed())


class Programs(unittest.TestCase):
    def test_a_failure_is_a_line(self):
        command = ["/bin/fleetune", "train"]
        self.assertEqual(reason(command, 1, False, 9, "note\nerror: no card\nmore"),
                         "fleetune train: exit code 1: error: no card")
        self.assertEqual(reason(command, -9, True, 9, ""), "fleetune train: not done within 9 s")
        self.assertEqual(reason(command, 1, False, 9, "torch.OutOfMemoryError: CUDA"), "fleetune train: out of memory")

    def test_the_processor_takes_small_shapes(self):
        self.assertEqual(options_of(["--device", "cpu"]).sizes, ["tiny"])
        self.assertEqual(options_of([]).sizes, ["builtin", "0.5b", "1b", "7b"])


if __name__ == "__main__":
    unittest.main()
