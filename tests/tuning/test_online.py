"""The tuner with a clock of its own: what it chooses, what it spends, and what it refuses."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.tuning.fake_gpu import AtOnce, Clock
from xmipp_accel.tuning.online import SHARE, Budget, Tuner

OPTIONS = ("scatter", "columns", "bricks")


def _tuner(clock, expected=1e6, options=OPTIONS, check=lambda option: 0.0, background=None, **known):
    budget = Budget()
    budget.expect(expected)
    return Tuner(options, "columns", budget, clock.stopwatch, check, background or AtOnce(), **known)


def _run(tuner, clock, costs, batches, noise=0.0, seed=0):
    """The option of each batch; the first one of every option takes a second to compile."""
    rng, used = np.random.default_rng(seed), []
    for images in batches:
        with tuner.trial(images) as option:
            compiling = float(option not in used)
            used.append(option)
            clock.now += compiling + images * costs[option] * (1 + noise * rng.uniform(-1, 1))
        clock.now += 1e-3
    return used


@pytest.mark.parametrize("lag", [0.0, 0.5])
@pytest.mark.parametrize("fastest", OPTIONS)
def test_every_option_gets_three_batches_and_the_fastest_the_rest(fastest, lag):
    clock = Clock(lag)
    tuner = _tuner(clock)
    costs = {option: 1e-3 if option == fastest else 1.3e-3 for option in OPTIONS}
    used = _run(tuner, clock, costs, [100] * 40)
    assert used[:9] == ["columns"] * 3 + ["scatter"] * 3 + ["bricks"] * 3
    assert set(used[20:]) == {fastest} and tuner.settled
    for option in OPTIONS:
        np.testing.assert_allclose(tuner.times[option], [costs[option]] * 2)


def test_noise_does_not_hide_a_clear_difference():
    costs = dict(scatter=1.0e-3, columns=1.3e-3, bricks=1.4e-3)
    for seed in range(50):
        clock = Clock()
        assert _run(_tuner(clock), clock, costs, [100] * 12, noise=0.1, seed=seed)[-1] == "scatter"


def test_batches_of_other_sizes_compare_and_small_ones_are_not_timed():
    """Columns would win if a batch's time counted, or if the overhead of the small one did."""
    clock = Clock()
    tuner = _tuner(clock, options=("columns", "scatter"))
    costs = dict(columns=1.2e-3, scatter=1e-3)
    used = _run(tuner, clock, costs, [100, 60, 100, 100, 10, 100, 100, 10, 100])
    assert used == ["columns"] * 3 + ["scatter", "columns"] + ["scatter"] * 4
    np.testing.assert_allclose(tuner.times["columns"], [1.2e-3] * 2)


@pytest.mark.parametrize(("expected", "tried"), [(9000, []), (10000, ["scatter"]), (20000, ["scatter", "bricks"])])
def test_no_more_than_three_percent_of_the_images_are_tried_on(expected, tried):
    clock = Clock()
    costs = dict(columns=1e-3, scatter=1.2e-3, bricks=1.2e-3)
    used = _run(_tuner(clock, expected), clock, costs, [100] * (expected // 100))
    others = [option for option in used if option != "columns"]
    assert sorted(set(others), key=others.index) == tried
    assert 100 * len(others) <= SHARE * expected == 0.03 * expected


def test_one_that_is_half_as_fast_again_gets_no_second_time():
    clock = Clock()
    tuner = _tuner(clock)
    used = _run(tuner, clock, dict(columns=1e-3, scatter=1.6e-3, bricks=1.4e-3), [100] * 20)
    assert used.count("scatter") == 2 and used.count("bricks") == 3
    assert tuner.settled and tuner.best == "columns"


@pytest.mark.parametrize(
    ("fault", "told"), [(2e-4, "2.0e-04"), (float("nan"), "nan"), (RuntimeError("no kernel"), "no kernel")]
)
def test_an_option_that_does_something_else_is_struck_off(caplog, fault, told):
    def check(option):
        if option == "bricks":
            return 1e-5
        if isinstance(fault, Exception):
            raise fault
        return fault

    clock = Clock()
    tuner = _tuner(clock, check=check)
    used = _run(tuner, clock, dict(columns=2e-3, scatter=1e-3, bricks=1.5e-3), [100] * 20)
    assert "scatter" not in used and used[-1] == "bricks" and tuner.settled
    (line,) = caplog.messages
    assert "scatter is not used" in line and told in line


def test_nothing_waits_for_a_check():
    """The default goes on until the other option has been compiled and compared, in a thread."""
    may_go_on, clock = threading.Event(), Clock()
    costs = dict(columns=2e-3, scatter=1e-3)
    with ThreadPoolExecutor(1) as thread:
        checked = {}

        def check(option):
            checked[option] = may_go_on.wait(10)
            return 0.0

        tuner = _tuner(clock, options=("scatter", "columns"), check=check, background=thread)
        assert _run(tuner, clock, costs, [100] * 8) == ["columns"] * 8
        may_go_on.set()
    assert checked == {"scatter": True}
    assert _run(tuner, clock, costs, [100] * 8) == ["scatter"] * 8


def test_what_is_known_is_neither_tried_nor_checked_again():
    def check(option):
        raise AssertionError

    clock, stored = Clock(), []
    costs = dict(columns=2e-3, scatter=1e-3, bricks=1.4e-3)
    _run(_tuner(clock, store=stored.append), clock, costs, [100] * 20)
    entry = stored[-1]
    assert (entry.option, entry.count) == ("scatter", 6) and abs(entry.median - 1e-3) < 1e-9
    for expected in (0, 1e6):
        later = _tuner(clock, expected, check=check, known=entry.trials)
        assert later.settled and _run(later, clock, costs, [100] * 5) == ["scatter"] * 5


def test_runs_that_are_too_short_for_all_learn_one_after_the_other():
    known, costs = {}, dict(columns=2e-3, scatter=1.5e-3, bricks=1e-3)
    for best in ("scatter", "bricks"):
        clock, stored = Clock(), []
        used = _run(_tuner(clock, 10000, known=known, store=stored.append), clock, costs, [100] * 100)
        known = stored[-1].trials
        assert used[-1] == stored[-1].option == best
