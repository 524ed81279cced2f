"""Nearest key and n-grams against plain loops."""
import numpy as np
import pytest
import torch

from iclrepro import baselines as bl
from iclrepro.prompts import Draws


@pytest.mark.parametrize("n_pairs, n_queries", [(1, 1), (5, 1), (4, 3), (3, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearest_key_is_a_loop(n_pairs, n_queries, dtype):
    x = Draws(0).normal(6, 2 * n_pairs + n_queries, 4).to(dtype)
    found = bl.nearest_key(x, n_pairs)
    assert found.shape == (6, n_queries, 4) and found.dtype == dtype
    for b, tokens in enumerate(x.double().numpy()):
        for q, query in enumerate(tokens[2 * n_pairs:]):
            best = max(range(n_pairs), key=lambda i: tokens[2 * i] @ query)
            np.testing.assert_array_equal(found[b, q].double(), tokens[2 * best + 1])


def test_a_copied_key_is_found_among_keys_of_one_length():
    draws = Draws(0)
    pairs = torch.nn.functional.normalize(draws.normal(500, 64, 20), dim=-1)
    asked = draws.integers(32, 500, 16)
    take = lambda offset: pairs.gather(1, (2 * asked + offset)[..., None].expand(-1, -1, 20))
    assert torch.equal(bl.nearest_key(torch.cat([pairs, take(0)], 1), 32), take(1))


def test_of_equal_keys_the_first_counts():
    x = torch.tensor([[[1.0], [5], [1], [6], [1], [7], [2]]])
    assert bl.nearest_key(x, 3).item() == 5


@pytest.mark.parametrize("x, n_pairs, message", [
    ([[1.0]], 1, "x is list: it must be a tensor of floating-point numbers"),
    (torch.ones(2, 5, 3).int(), 1, r"x is torch.int32 \(2, 5, 3\)"),
    (torch.ones(5, 3), 1, r"x is torch.float32 \(5, 3\)"),
    (torch.ones(2, 4, 3), 2, "n_pairs is 2: with 4 tokens it must be at least 1 and leave a query"),
    (torch.ones(2, 4, 3), 0, "n_pairs is 0"),
    (torch.ones(2, 5, 3) / 0, 2, "x holds values that are not finite"),
])
def test_bad_dictionaries_are_named(x, n_pairs, message):
    with pytest.raises(ValueError, match=message): bl.nearest_key(x, n_pairs)


def n_gram_by_loops(text, vocab, n, smoothing):
    "Next-symbol distributions after each position, each counted from scratch."
    rows = []
    for t in range(len(text)):
        p = [1 / vocab] * vocab
        for context in range(n):
            if context > t + 1: break
            last = text[t + 1 - context:t + 1]
            counts = [0] * vocab
            for s in range(context, t + 1):
                if text[s - context:s] == last: counts[text[s]] += 1
            total = sum(counts)
            if total + smoothing: p = [(c + smoothing * shorter) / (total + smoothing) for c, shorter in zip(counts, p)]
        rows.append(p)
    return rows


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
def test_n_gram_is_a_loop(n, smoothing):
    vocab = 4
    x = torch.cat([Draws(0).integers(3, 6, 40), Draws(1).integers(2, 6, 10)], 1)  # symbol 3 never comes
    found = bl.n_gram(x, vocab, n, smoothing)
    assert found.shape == (6, 50, vocab)
    expected = [n_gram_by_loops(text.tolist(), vocab, n, smoothing) for text in x]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_n_gram_does_not_look_ahead(n):
    x = Draws(0).integers(5, 4, 30)
    other = torch.cat([x[:, :17], Draws(1).integers(5, 4, 13)], 1)
    assert torch.equal(bl.n_gram(x, 5, n)[:, :17], bl.n_gram(other, 5, n)[:, :17])
    assert not torch.equal(bl.n_gram(x, 5, n)[:, 17:], bl.n_gram(other, 5, n)[:, 17:])


def test_n_gram_does_not_depend_on_chunks_and_takes_short_texts(monkeypatch):
    x = Draws(0).integers(5, 4, 12)
    together = bl.n_gram(x, 5, 3)
    monkeypatch.setattr(bl, "_CHUNK", 1)
    assert torch.equal(bl.n_gram(x, 5, 3), together)
    assert torch.equal(bl.n_gram(x[:, :1], 5, 3), bl.n_gram(x[:, :1], 5, 1))


def test_a_bigram_recalls():
    "Unique keys, values elsewhere in the vocabulary, the question a key shown before: associative recall is counting pairs."
    draws = Draws(0)
    keys, values, asked = draws.subsets(32, 8, 100), 32 + draws.subsets(32, 8, 100), draws.integers(8, 100, 1)
    x = torch.cat([torch.stack([keys, values], -1).flatten(1), keys.gather(1, asked)], 1)
    assert torch.equal(bl.n_gram(x, 64, 2)[:, -1].argmax(-1), values.gather(1, asked)[:, 0])


@pytest.mark.parametrize("call, message", [
    (lambda: bl.n_gram(torch.ones(2, 3), 4), r"x is torch.float32 \(2, 3\): it must be an int64 tensor"),
    (lambda: bl.n_gram([[1]], 4), "x is list"),
    (lambda: bl.n_gram(torch.ones(2, 0, dtype=torch.int64), 4), r"\(2, 0\).*each at least 1"),
    (lambda: bl.n_gram(torch.tensor([[0, 4]]), 4), "x holds symbols from 0 to 4: with vocab 4 they must lie in 0 … 3"),
    (lambda: bl.n_gram(torch.tensor([[-1, 2]]), 4), "x holds symbols from -1 to 2"),
    (lambda: bl.n_gram(torch.tensor([[0]]), 4, n=0), "n is 0: it must be at least 1"),
    (lambda: bl.n_gram(torch.tensor([[0]]), 4, smoothing=-1.0), "smoothing is -1.0"),
    (lambda: bl.n_gram(torch.tensor([[0]]), 4, smoothing=float("nan")), "smoothing is nan"),
])
def test_bad_texts_are_named(call, message):
    with pytest.raises(ValueError, match=message): call()
