"""``bench growth`` finds the exponents of memory that the mathematics says, and shows them beside each other."""

import pytest

from multipde.studies.bench import cost_growth, memory


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(cost_growth, "BASE", {"size": 12, "steps": 4, "channels": 8, "batch": 2})
    monkeypatch.setattr(cost_growth, "RANGES", {"size": (12, 24), "steps": (24, 48), "channels": (8, 16)})
    monkeypatch.setattr(memory, "alternated", lambda calls, *how: dict.fromkeys(calls, 1.0))  # memory is asked for
    monkeypatch.setattr(cost_growth, "_cores", lambda: 1)


@pytest.mark.parametrize("dynamics", ["hamiltonian", "parabolic"])
def test_memory_grows_as_the_law_says(dynamics, small, tmp_path):
    rows = cost_growth.growth_study(tmp_path / "rows.jsonl", dynamics=(dynamics,), repeats=1, device="cpu")
    (tmp_path / "rows.svg").stat()
    ways = dict.fromkeys(row["memory"] for row in rows)
    assert ("reversible" in ways) == (dynamics == "hamiltonian")
    for way in set(ways) - {"memcnn"}:
        for varied, near in (("size", 0.1), ("steps", 0.2), ("channels", 0.15)):
            own = [row for row in rows if (row["memory"], row["varied"]) == (way, varied)]
            found = cost_growth.exponent(own, "bytes")
            assert found == pytest.approx(cost_growth.LAWS[varied][way], abs=near), (way, varied)


def test_exponents_are_those_of_the_two_largest_values():
    rows = [{"value": v, "seconds": 5.0 + 2 * v**2} for v in (1, 1000, 10_000)]
    assert cost_growth.exponent(rows, "seconds") == pytest.approx(2, abs=1e-3)
    table = cost_growth.growth_table([r | {"memory": "store", "varied": "size", "bytes": 8 * r["value"]} for r in rows])
    assert table == [{"memory": "store", "size: time": "2.00 (2)", "size: memory": "1.00 (2)"}]
