"""Which consumer reads what."""

import pytest

from asr.streaming.dealing import Dealing


@pytest.mark.parametrize(("units", "consumers"), [(7, 1), (7, 2), (7, 7), (12, 5)])
def test_each_unit_goes_to_one_consumer_an_epoch(units, consumers):
    dealing = Dealing(units, consumers, seed=3)
    for epoch in range(3):
        dealt = [dealing.units(consumer, epoch) for consumer in range(consumers)]
        assert sorted(unit for of_one in dealt for unit in of_one) == list(range(units))
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert all(dealing.takes(0, 0, 0, row) for row in range(5))


@pytest.mark.parametrize(("units", "consumers"), [(1, 2), (3, 8)])
def test_with_fewer_units_each_row_goes_to_one_consumer(units, consumers):
    dealing = Dealing(units, consumers, seed=3)
    for epoch in range(3):
        for consumer in range(consumers):
            assert sorted(dealing.units(consumer, epoch)) == list(range(units))
        for unit in range(units):
            for row in range(20):
                assert [dealing.takes(consumer, epoch, unit, row) for consumer in range(consumers)].count(True) == 1
        counts = [
            sum(dealing.takes(consumer, epoch, unit, row) for unit in range(units) for row in range(8)) for consumer in range(consumers)
        ]
        assert max(counts) - min(counts) <= 1


def test_epochs_and_seeds_have_their_own_order():
    orders = {tuple(Dealing(10, 1, seed).order(epoch)) for seed in (1, 2) for epoch in (0, 1, 2)}
    assert len(orders) == 6
    assert Dealing(10, 1, 1).order(1) == Dealing(10, 4, 1).order(1)
