"""Counting modulo two: a recurrent network finds the automaton, attention a fit of the lengths it saw."""

import pytest
from bench.learning import EXPERIMENTS, fit, score

PARITY = EXPERIMENTS["parity"]


def test_a_recurrent_network_goes_on_to_eight_times_its_training_length():
    net, _ = fit(PARITY, "rnn", seed=0)
    for task in PARITY.asked:
        assert score(net, task).accuracy >= 0.99


@pytest.mark.parametrize(("model", "fits"), [("attention-rope", 0.8), ("attention-none", 0.7)])
def test_attention_is_at_chance_beyond_its_training_length(model, fits):
    """It does learn: eight bits mostly with rotary positions and partly without, though neither is exact on
    sixteen in this budget. Past them it knows nothing."""
    net, (first, _) = fit(PARITY, model, seed=0)
    assert first.accuracy >= fits
    for task in PARITY.asked:
        found = score(net, task)
        assert abs(found.accuracy - 0.5) < 0.05
        assert found.nats > 0.98 * task.blind
