"""Looking up what was seen once: attention and RWKV-7 do; an Elman network of their width does not."""

import pytest
from bench.learning import EXPERIMENTS, fit, score

RECALL = EXPERIMENTS["recall"]
PAIRS = RECALL.stages[-1][0]


@pytest.mark.parametrize("model", ["attention", "rwkv7"])
def test_recall_is_learned(model):
    net, _ = fit(RECALL, model, seed=0)
    assert score(net, PAIRS).accuracy >= 0.95


def test_recall_is_not_learned_by_a_plain_recurrent_network_of_the_same_width():
    """It stays at the loss of a blind guess: 64 numbers that are all written anew at each step do not become
    a table of eight entries in this budget."""
    net, _ = fit(RECALL, "rnn", seed=0)
    found = score(net, PAIRS)
    assert found.accuracy < 0.3 and found.nats > 0.9 * PAIRS.blind
