"""Schedules: what they cost, what they print, which network each level has."""

from itertools import pairwise

import pytest

from multipde import Level, NetworkConfig, Schedule, count_flops, preset
from multipde.training.level import POLICIES
from multipde.training.schedule import levels_from_lists

NETWORK = NetworkConfig("hamiltonian", (4, 6), 8, size=16)


def test_levels_get_the_network_on_their_mesh_with_the_final_time_of_the_first():
    plan = Schedule([Level(8, 1, steps=2), Level(16, 1, steps=4), Level(32, 1)], NETWORK)
    configs = plan.configs()
    assert [c.size for c in configs] == [8, 16, 32]
    assert [c.block_steps for c in configs] == [(2, 2), (4, 4), (4, 4)]
    assert [c.final_times for c in configs] == [(2.0, 2.0)] * 3


def test_work_is_counted_by_torch():
    plan = Schedule([Level(8, 3), Level(16, 2)], NETWORK)
    expected = [n * count_flops(NETWORK.on_mesh(s), training=True) for n, s in ((3, 8), (2, 16))]
    assert plan.work() == expected
    shares = [row["share"] for row in plan.rows()]
    assert shares == [f"{100 * w / sum(expected):.0f} %" for w in expected]


def test_without_a_network_work_is_epochs_times_pixels_times_steps():
    plan = Schedule([Level(8, 2, steps=3), Level(16, 1), Level(16, 1, steps=(2, 4, 6))])
    assert plan.work() == [2 * 64 * 3, 256 * 3, 256 * 4]


def test_printed_numbers_are_those_of_the_levels():
    plan = Schedule(levels_from_lists([8, 16, 32], [3, 6, 3]), preset("cifar10-hamiltonian"))
    header, *rows = [line.split() for line in str(plan).splitlines()]
    assert header[:4] == ["level", "size", "h", "steps"]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert [float(row[2]) for row in rows] == [1 / 8, 1 / 16, 1 / 32]
    flops = [count_flops(preset("cifar10-hamiltonian").on_mesh(s), training=True) / 1e6 for s in (8, 16, 32)]
    assert [float(row[7]) for row in rows] == pytest.approx(flops, abs=0.05)
    assert sum(int(row[8]) for row in rows) in (99, 100, 101)


@pytest.mark.parametrize("policy", POLICIES)
def test_learning_rates_start_below_or_at_the_peak_and_end_small(policy):
    plan = Schedule([Level(8, 5, learning_rate=0.2, policy=policy)])
    rates = [plan.rate(0, i / 100) for i in range(100)]
    assert max(rates) == pytest.approx(0.2)
    assert policy in ("warm_up", "constant") or rates[-1] <= 0.2 / 25 + 1e-12


def test_one_cycle_across_all_levels_goes_by_the_work():
    plan = Schedule([Level(s, 1) for s in (16, 32)])  # the default; work 1 : 4
    rates = [plan.rate(0, f) for f in (0, 0.5)] + [plan.rate(1, f) for f in (0.5, 1)]
    assert rates == pytest.approx([0.1 * POLICIES["one_cycle"](f) for f in (0, 0.1, 0.6, 1)])


def test_across_a_single_level_is_one_cycle():
    across, alone = (Schedule([Level(16, 3, policy=policy)]) for policy in (Level.policy, "one_cycle"))
    fractions = [i / 64 for i in range(65)]
    assert [across.rate(0, f) for f in fractions] == pytest.approx([alone.rate(0, f) for f in fractions], abs=1e-15)


def test_part_of_an_epoch_and_mixed_levels_cost_what_they_do():
    mixed = levels_from_lists([8, 32], epochs=[3, 1], mixed=True)
    assert (mixed[0].size, mixed[0].epochs, mixed[0].sizes) == (32, 4, ((8, 0.75), (32, 0.25)))
    plan, apart = Schedule(mixed), Schedule(levels_from_lists([8, 32], epochs=[3, 1], steps=[1, 1]))
    assert plan.work()[0] == pytest.approx(sum(apart.work()))
    config = preset("cifar10-hamiltonian")
    own_steps = Schedule(levels_from_lists([8, 32], epochs=[3, 1]))
    assert plan.of(config).work()[0] == pytest.approx(sum(own_steps.of(config).work()))
    part = Level(8, 2.5)
    assert (part.num_epochs, [part.share_of_epoch(e) for e in range(3)]) == (3, [1, 1, 0.5])
    assert "8+32" in str(plan)


def test_balanced_batches_have_the_pixels_of_the_finest_and_rates_in_proportion():
    levels = [Level(8, 1, learning_rate=0.2), Level(16, 1), Level(32, 1), Level(32, 1, batch=50)]
    found = Schedule(levels, preset("cifar10-hamiltonian")).balanced(40_000).levels
    assert [level.batch * level.size**2 for level in found] == [125 * 32**2] * 4
    assert [level.learning_rate / level.batch for level in found] == pytest.approx(
        [0.2 / 125, 0.1 / 125, 0.1 / 125, 0.1 / 50]
    )
    shared = Schedule([Level(24, 1), Level(32, 1)]).balanced(40_000, multiple=4).levels
    assert [(level.batch, level.learning_rate) for level in shared] == [(220, 0.1 * 220 / 125), (124, 0.1 * 124 / 125)]
    assert Schedule([Level(8, 1, batch=2)]).balanced(99, multiple=3).levels[0].batch == 3
    assert Schedule(found).balanced(40_000).levels == found


@pytest.mark.parametrize(("num", "batch"), [(40_000, 2000), (8_000, 500), (1_600, 125), (100, 125)])
def test_balanced_batches_leave_sixteen_steps_or_are_those_of_the_finest(num, batch):
    plan = Schedule([Level(8, 1), Level(32, 1)]).balanced(num)
    assert [(level.batch, level.learning_rate) for level in plan.levels] == [(batch, 0.1 * batch / 125), (125, 0.1)]
    assert batch == 125 or num // batch >= 16


def test_the_papers_policy_has_60_20_20_per_cent():
    plan = Schedule([Level(8, 100, learning_rate=0.1, policy="piecewise")])
    assert [plan.rate(0, e / 100) for e in (0, 59, 60, 79, 80, 99)] == pytest.approx(
        [0.1, 0.1, 0.02, 0.02, 0.004, 0.004]
    )
    long = Schedule([Level(8, 200, learning_rate=0.1, policy="piecewise_long")])
    assert [long.rate(0, e / 200) for e in (0, 59, 60, 100, 140, 179, 180, 199)] == pytest.approx(
        [0.1, 0.1, 0.02, 0.004, 0.0008, 0.0008, 0.00016, 0.00016]
    )


def test_one_cycle_is_continuous():
    rates = [POLICIES["one_cycle"](i / 1000) for i in range(1000)]
    assert max(abs(a - b) for a, b in pairwise(rates)) < 0.005


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Level(0, 1), "size must be positive, got 0"),
        (lambda: Level(8, 0), "epochs must be positive, got 0"),
        (lambda: Level(8, 1, batch=0), "batch must be positive, got 0"),
        (lambda: Level(8, 1, learning_rate=-1.0), "learning_rate must be positive, got -1.0"),
        (
            lambda: Level(8, 1, policy="cosine"),
            "policy must be one of one_cycle, piecewise, piecewise_long, across, warm_up, constant, cool_down, got 'c",
        ),
        (lambda: Schedule([]), "levels must name at least one level, got none"),
        (lambda: Schedule([Level(7, 1)], NETWORK), "size must be a positive multiple of 2"),
        (lambda: Schedule([Level(8, 1, steps=0)], NETWORK), "steps must be positive, got 0"),
        (lambda: Schedule([Level(8, 1)]).configs(), "network must be given to know the levels' networks"),
        (lambda: levels_from_lists([8, 16], [1]), r"epochs must have one entry per size \(2\), got 1: \(1,\)"),
        (lambda: levels_from_lists([8, 16], None, [3]), "steps must have one entry per size"),
        (lambda: levels_from_lists([8, 16], batch=[1, 2, 3]), "batch must have one entry per size"),
        (
            lambda: Schedule(levels_from_lists([8, 16], mixed=True)).balanced(100),
            "batch must be given for mixed levels, got auto",
        ),
        (lambda: levels_from_lists([]), "sizes must name at least one level, got none"),
    ],
)
def test_bad_schedules_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("warm_up", [0.0, 0.1, 0.25])
def test_the_rise_of_a_cycle_takes_its_share(warm_up):
    level = Level(8, 1, learning_rate=1.0, warm_up=warm_up)
    assert level.rate(0) == pytest.approx(0.1 if warm_up else 1.0)
    assert level.rate(warm_up) == 1.0
    assert level.rate(warm_up / 2) == pytest.approx(0.55 if warm_up else 1.0)
    assert level.rate((1 + warm_up) / 2) == pytest.approx(0.5)
    assert [Level(8, 1).rate(i / 100) for i in range(100)] == [0.1 * POLICIES["across"](i / 100) for i in range(100)]


def test_the_rise_of_a_cycle_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match="warm_up must be left out with the policy piecewise, got 0.1"):
        Level(8, 1, policy="piecewise", warm_up=0.1)
    with pytest.raises(ValueError, match=r"warm_up must lie in \[0, 1\), got 1"):
        Level(8, 1, warm_up=1)


def test_shares_of_a_budget_become_epochs_of_whole_parts():
    levels = [Level(8, 1, steps=3), Level(16, 1), Level(16, 1, steps=4)]
    plan = Schedule(levels, NETWORK).of_work((10, 30, 60), 1e8, (40, 40, 80))
    work = plan.work()
    for w, share, flops, parts, level in zip(
        work, (1e7, 3e7, 6e7), plan.flops(), (40, 40, 80), plan.levels, strict=True
    ):
        assert w == pytest.approx(share, abs=flops / parts / 2)
        assert level.epochs * parts == pytest.approx(round(level.epochs * parts))
    tiny = Schedule(levels, NETWORK).of_work((1, 1, 1), 1.0, (20, 20, 20))
    assert [level.epochs for level in tiny.levels] == [0.05] * 3
    (flops, *_), per_step = plan.flops(), 125 * plan.flops()[0]  # an optimizer as dear as the network
    (half,) = Schedule([Level(8, 1, steps=3)], NETWORK).of_work((1,), 10 * flops, (100,), per_step).levels
    assert half.epochs == pytest.approx(5)


def test_shares_that_fit_no_schedule_are_refused():
    plan = Schedule([Level(8, 1), Level(16, 1)], NETWORK)
    for shares in ((1,), (1, 0), (1, float("inf"))):
        with pytest.raises(ValueError, match="work must be a positive share for each of the 2 levels, got 1"):
            plan.of_work(shares, 1e8, (20, 20))
    with pytest.raises(ValueError, match="work must be left out for mixed levels; give their epochs"):
        Schedule([Level(16, 1, mixed=((8, 0.5), (16, 0.5)))], NETWORK).of_work((1,), 1e8, (20,))
