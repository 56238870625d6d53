"""The tokens of a layer know which of their sequences are held out."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mergemoe.moe.tokens import Remembered


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=6, unique_by=lambda pair: pair[0]))
def test_held_out_sequences_are_counted_once_however_many_tokens_they_have(sequences):
    heldout = torch.zeros(6, dtype=torch.bool)
    for sequence, held in sequences:
        heldout[sequence] = held
    tokens = torch.tensor([sequence for sequence, _ in sequences for _ in range(sequence + 1)], dtype=torch.int32)
    reader = Remembered([{"sequence": tokens, "expert_index": torch.zeros(len(tokens), 2)}], heldout)
    assert reader.heldout_sequences() == sum(held for _, held in sequences)
    assert reader.count(heldout=True) == sum(sequence + 1 for sequence, held in sequences if held)
