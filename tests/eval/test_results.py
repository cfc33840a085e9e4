"""Rows, intervals and tables."""

import json

import numpy as np
import pytest
from scipy import stats

from eval import results
from mrfomm.errors import UserError

ROWS = [{"clip": "a", "l1": 0.1 + 0.2}, {"clip": "ü", "l1": None, "frames": [1, 2]}]


def test_rows_come_back(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    results.write_rows(path, ROWS)
    assert results.read_rows(path) == ROWS
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == ROWS


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    results.write_rows(path, ROWS)
    with pytest.raises(ValueError, match="JSON"):
        results.write_rows(path, [{"l1": float("nan")}])
    assert results.read_rows(path) == ROWS


@pytest.mark.parametrize("line", ["{torn", "[1]", "3"])
def test_bad_line_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n' + line + "\n")
    with pytest.raises(UserError, match="rows.jsonl: line 2"):
        results.read_rows(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="none.jsonl: no such file"):
        results.read_rows(tmp_path / "none.jsonl")


def test_provenance_names_the_versions_that_are_installed():
    versions = results.provenance()
    assert versions["numpy"] == np.__version__
    assert "no-such-package" not in versions


def test_interval_matches_scipys_percentile_bootstrap():
    values = np.random.default_rng(0).exponential(size=40)
    ours = results.bootstrap_interval(values, resamples=20000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20000, method="percentile", random_state=1)
    assert ours.mean == pytest.approx(values.mean(), abs=1e-12)
    # two simulations of the same quantiles: each is uncertain by about 0.01 of the interval's width
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    np.testing.assert_allclose(ours[1:], theirs.confidence_interval, atol=0.04 * width)


def test_interval_covers_the_true_mean_about_as_often_as_promised():
    rng = np.random.default_rng(1)
    samples = rng.normal(5, 1, (200, 30))
    intervals = [
        results.bootstrap_interval(sample, seed=i, resamples=400, level=0.8) for i, sample in enumerate(samples)
    ]
    covered = np.mean([interval.low <= 5 <= interval.high for interval in intervals])
    assert 0.70 < covered < 0.88


def test_weights_count_like_repetition():
    """Of two values one is drawn never, once or twice; the means a resample can have are known."""
    interval = results.bootstrap_interval([0.0, 1.0], weights=[3, 1], level=0.2)
    assert interval == (0.25, 0.25, 0.25)  # half of the resamples hold both values
    assert results.bootstrap_interval([0.0, 1.0], weights=[3, 1], level=1.0) == (0.25, 0.0, 1.0)


def test_seed_decides_the_interval():
    values = np.arange(10.0)
    assert results.bootstrap_interval(values, seed=3) == results.bootstrap_interval(values, seed=3)
    assert results.bootstrap_interval(values, seed=3) != results.bootstrap_interval(values, seed=4)


def test_one_value_has_an_interval_without_width():
    assert results.bootstrap_interval([2.0]) == (2.0, 2.0, 2.0)


def test_paired_difference_cancels_what_the_units_share():
    rng = np.random.default_rng(2)
    shared = rng.normal(0, 10, 30)
    a, b = shared + 1 + rng.normal(0, 0.1, 30), shared
    difference = results.paired_difference(a, b)
    assert difference.mean == pytest.approx(np.mean(a - b), abs=1e-12)
    assert 0.8 < difference.low < 1 < difference.high < 1.2
    alone = results.bootstrap_interval(a)
    assert alone.high - alone.low > 4


@pytest.mark.parametrize(
    ("values", "weights"), [([], None), ([1, 2], [1]), ([1, 2], [0, 0]), ([1, 2], [2, -1]), ([[1]], None)]
)
def test_bad_values_are_refused(values, weights):
    with pytest.raises(ValueError, match="weight"):
        results.bootstrap_interval(values, weights)


def test_pairs_need_equal_lengths():
    with pytest.raises(ValueError, match="same units"):
        results.paired_difference([1, 2], [1])


def test_markdown_table():
    table = results.markdown_table(["method", "L1D"], [["a|b", 0.04318], ["c", None], ["d", float("nan")]])
    assert table == (
        "| method |    L1D |\n| ------ | -----: |\n| a\\|b   | 0.0432 |\n| c      |      - |\n| d      |      - |\n"
    )


def test_table_rows_must_fit_the_header():
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        results.markdown_table(["a", "b"], [["x"]])


def test_rows_hold_any_letter(tmp_path):
    """Line ends of Unicode in a name are none in JSON lines."""
    rows = [{"clip": "a\u0085b\u2028c\u2029d\x0be"}, {"clip": "next"}]
    results.write_rows(tmp_path / "rows.jsonl", rows)
    assert results.read_rows(tmp_path / "rows.jsonl") == rows
