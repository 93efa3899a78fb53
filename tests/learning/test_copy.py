"""A token of eight steps ago: out of sight for a window of seven and for an n-gram, no matter to an LSTM."""

import math
from dataclasses import replace

from bench.learning import ECHO, EXPERIMENTS, SEEN, UNSEEN, fit, score, score_ngram

COPY = EXPERIMENTS["copy"]


def luck(found, odds=1e-6):
    """Nats a token by which a predictor that cannot know the answers comes below ln V at most, but for a
    chance of `odds`.

    When each answer is uniform whatever the predictor saw for it and for the answers taken before, the
    product of V q(answer) over n answers has an expectation of 1. So it reaches 1 / odds with a probability
    of at most `odds` (Markov), and the mean loss is below ln V - ln(1 / odds) / n no more often.
    """
    return math.log(1 / odds) / found.count


def test_a_copy_beyond_the_window_costs_the_entropy_of_the_source():
    """Two layers of 4 see 7 tokens. Taken from the last answer to the first, none was seen before."""
    net, _ = fit(COPY, "window", seed=0)
    found = score(net, ECHO)
    assert ECHO.entropy - luck(found) <= found.nats < ECHO.entropy + 0.05
    assert found.accuracy < 0.3


def test_a_copy_within_the_window_is_learned():
    near = replace(ECHO, lag=6)
    net, _ = fit(replace(COPY, stages=((near, 100),)), "window", seed=0)
    assert score(net, near).nats < 0.1


def test_a_copy_beyond_the_ngram_costs_the_entropy_of_the_source():
    found = score_ngram(UNSEEN, order=6)
    assert UNSEEN.entropy - luck(found) <= found.nats < UNSEEN.entropy + 0.05
    assert found.accuracy < 0.3


def test_a_copy_that_the_ngram_sees_is_learned():
    assert score_ngram(SEEN, order=6).nats < 0.1


def test_a_copy_is_learned_by_an_lstm():
    net, _ = fit(COPY, "lstm", seed=0)
    found = score(net, ECHO)
    assert found.nats < 0.1 and found.accuracy > 0.98
