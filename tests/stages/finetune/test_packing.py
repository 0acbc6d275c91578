"""Packed batches and the order they come in: every record once, none sees another."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from slmctl.model_files import model_shape  # noqa: E402
from slmctl.stages.finetune import batches, packing, trainer  # noqa: E402
from slmctl.stages.finetune.packing import IGNORED, pack, shared_prefix_length  # noqa: E402


def row(prompt: list[int], answer: list[int], weight: float = 1.0) -> Any:
    return {
        "input_ids": prompt + answer,
        "labels": [IGNORED] * len(prompt) + answer,
        "weights": [0.0] * len(prompt) + [weight] * len(answer),
    }


def order(count: int, *, batch: int = 8, seed: int = 0, epoch: int = 0, processes: int = 1) -> Any:
    arguments = SimpleNamespace(seed=seed, per_device_train_batch_size=batch // processes)
    lengths = [10 + (k * 37) % 90 for k in range(count)]
    lengths += [10] if processes > 1 else []  # the silent row
    made = trainer.LengthGroupedSampler(lengths, arguments, processes)
    made.epoch = epoch
    return made


def test_the_order_is_that_of_the_seed_and_the_epoch() -> None:
    assert list(order(300)) == list(order(300))
    assert list(order(300)) == list(order(300, processes=2, batch=8))[:300]
    others = [order(300, epoch=1), order(300, seed=1), order(300, seed=1, epoch=1)]
    assert len({tuple(one) for one in [order(300), *others]}) == 4
    assert list(order(12, seed=0))[:3] == [0, 5, 10], "the order of an old recipe must not change"


@pytest.mark.parametrize("count", [1, 7, 8, 9, 160, 161, 500])
def test_every_record_comes_once_an_epoch(count: int) -> None:
    for epoch in range(3):
        assert sorted(order(count, epoch=epoch)) == list(range(count))


def test_records_of_a_batch_are_of_like_length() -> None:
    made = order(480)
    indices = list(made)
    batches = [indices[k : k + 8] for k in range(0, len(indices), 8)]
    spread = [
        max(made.lengths[k] for k in batch) - min(made.lengths[k] for k in batch)
        for batch in batches
    ]
    assert max(spread) <= 90 / made.WINDOW * 3
    means = [sum(made.lengths[k] for k in batch) for batch in batches]
    assert means != sorted(means), "long batches come among short ones"


def test_several_processes_fill_the_last_batch_with_rows_that_say_nothing() -> None:
    made = order(12, processes=2)
    assert sorted(made) == [*range(12), *[12] * 4]
    assert len(made) == 16
    silent = trainer.without_loss(row([1, 2], [3]))
    assert silent["input_ids"] == [1, 2, 3]
    assert not any(silent["weights"])


def test_a_shared_prefix_ends_before_the_place_that_predicts() -> None:
    rows = [row([1, 2, 3], [7, 8]), row([1, 2, 3], [7, 9])]
    # the 3 predicts the first answer token, so each record has its own
    assert shared_prefix_length(rows) == 2
    batch = pack(rows)
    assert batch["layout"] == (2, 2)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 7, 8, 3, 7, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 2, 3, 4]]
    assert batch["keep"].tolist() == [2, 3, 5, 6]
    assert batch["labels"].tolist() == [7, 8, 7, 9]


def test_prefixes_are_as_long_as_the_shortest_question_allows() -> None:
    assert shared_prefix_length([row([1, 2, 3, 4], [5])]) == 0  # one record shares with nobody
    assert shared_prefix_length([row([1], [5]), row([1, 5], [5])]) == 0
    assert shared_prefix_length([row([1, 2, 9], [5]), row([1, 3, 9], [5])]) == 1
    assert shared_prefix_length([row([1, 2, 3, 4, 5], [6]), row([1, 2, 3], [4, 5])]) == 2


def test_records_of_different_lengths_keep_their_places_and_weights() -> None:
    batch = pack([row([1, 2, 3], [4], 0.5), row([1, 5, 6, 7], [8, 9])])
    assert batch["layout"] == (1, 2)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 0, 0, 5, 6, 7, 8, 9]]
    assert batch["keep"].tolist() == [2, 8, 9]
    assert batch["weights"].tolist() == [0.5, 1, 1]


def test_left_padding_lays_rows_out() -> None:
    (batch,) = batches.PaddedBatches(9)([row([1], [2, 3]), row([], [4], 2)])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [9, 9, 4]]
    assert batch["labels"].tolist() == [2, 3, 4]
    assert batch["weights"].tolist() == [1, 1, 2]
    assert batch["keep"].tolist() == [0, 1, 4]  # of six places, row by row
    assert batch["columns"] == 3
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]


def test_a_record_sees_the_prefix_and_its_own_past() -> None:
    seen = (packing.causal_bias(2, 3, None) == 0).tolist()
    assert seen == [[True, True, True, False, False], [True, True, True, True, False], [True] * 5]
    narrow = (packing.causal_bias(2, 3, 2) == 0).tolist()
    assert narrow == [
        [False, True, True, False, False],
        [False, False, True, True, False],
        [False, False, False, True, True],
    ]


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 3])
def test_packed_attention_is_that_of_each_record_alone(
    cap: float | None, window: int | None
) -> None:
    torch.manual_seed(0)
    prefix, records, length, heads, kv, size = 4, 3, 5, 4, 2, 8
    tokens = prefix + records * length
    query = torch.randn(1, heads, tokens, size)
    key, value = torch.randn(2, 1, kv, tokens, size)
    got, _ = packing.attention(
        torch.nn.Identity(),
        query,
        key,
        value,
        None,
        layout=(prefix, records),
        scaling=0.3,
        sliding_window=window,
        softcap=cap,
    )
    places = torch.arange(prefix + length)
    far = places[:, None] - places[None, :]
    hidden = (far < 0) | (far >= (window or 99))
    for record in range(records):
        own = torch.cat([torch.arange(prefix), torch.arange(length) + prefix + record * length])
        q, k, v = query[0, :, own], key[0, :, own].repeat_interleave(2, dim=0), value[0, :, own]
        scores = q @ k.transpose(1, 2) * 0.3
        scores = scores if cap is None else cap * torch.tanh(scores / cap)
        wanted = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1) @ v.repeat_interleave(
            2, dim=0
        )
        torch.testing.assert_close(got[0, own], wanted.transpose(0, 1))


def test_a_batch_is_cut_into_pieces_of_like_size() -> None:
    pieces = batches.PackedBatches(limit=100)
    rows = [row([1] * (20 + k), [3, 4]) for k in range(10)]
    made = pieces(rows)
    assert [piece["layout"][1] for piece in made] == [5, 5]
    assert sum(len(piece["labels"]) for piece in made) == 20
    assert 0 < pieces.padded < pieces.filled == sum(piece["input_ids"].numel() for piece in made)
    rows[4] = row([9] * 80, [3])  # shares nothing with the others, so it costs them what they share
    assert [piece["layout"][1] for piece in pieces(rows)] == [4, 1, 5]
    (alone,) = pieces([row([1] * 300, [2])])  # longer than the limit: a piece of its own
    assert alone["input_ids"].shape == (1, 301)


@pytest.mark.parametrize("shared", [0, 100, 200, 400, 800])
def test_a_long_shared_prefix_is_hardly_computed_twice(shared: int) -> None:
    # cut by whole lengths, 400 shared tokens before 16 records of 60 cost 5.4 times as much
    rows = [row([*range(shared), 5000 + k, *[3] * 57], [4, 5]) for k in range(16)]
    computed = sum(piece["input_ids"].numel() for piece in batches.PackedBatches()(rows))
    assert computed <= 1.1 * (shared + 16 * 60)


@pytest.mark.parametrize("limit", [768, 128])
def test_no_piece_is_larger_than_the_estimate(limit: int) -> None:
    choose = random.Random(limit)
    for _ in range(60):
        heads = [[k + 1] * choose.choice([0, 3, 50, 400]) for k in range(choose.choice([1, 1, 2]))]
        questions = [
            [choose.randrange(9)] * choose.randrange(1, 120) for _ in range(choose.randrange(1, 40))
        ]
        rows = sorted(
            (row(choose.choice(heads) + question, [8] * 3) for question in questions), key=size
        )
        together = choose.choice([1, 2, 16])
        bound = batches.largest_piece(rows, together, limit)
        for start in range(0, len(rows) - together + 1, together):
            for kind in (batches.PackedBatches(limit=limit), batches.PaddedBatches(0, limit)):
                largest = max(
                    piece["input_ids"].numel() for piece in kind(rows[start : start + together])
                )
                # a batch of like lengths has little padding
                assert largest - kind.padded <= bound.tokens


def size(record: Any) -> int:
    return len(record["input_ids"])


@pytest.mark.parametrize(
    ("lengths", "together", "largest"),
    [
        ([5, 30, 20, 10], 2, 50),  # short records never fill a piece
        ([100] * 40, 16, 600),  # cut evenly: 6, 5 and 5 records
        ([10, 2 * model_shape.PIECE_TOKENS], 2, 2 * model_shape.PIECE_TOKENS),
    ],
)
def test_what_is_computed_at_once_is_bounded_by_the_batch_and_by_a_piece(
    lengths: list[int], together: int, largest: int
) -> None:
    rows = [row([k, *[9] * (length - 2)], [9]) for k, length in enumerate(lengths)]
    assert batches.largest_piece(rows, together).tokens == largest


def test_the_prefix_is_attended_to_by_every_record() -> None:
    rows = [row([*range(400), 5000 + k, *[3] * 57], [4, 5]) for k in range(40)]
    assert batches.largest_piece(rows, 16) == (400 + 16 * 60, 400 + 16 * 60 + 16 * 400)
    assert batches.largest_piece(rows, 16, 128).tokens == 460  # little memory: a record alone
