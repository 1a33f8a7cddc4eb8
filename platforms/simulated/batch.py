"""What one step asks of attention, checked against the contract to the letter."""

from collections.abc import Iterator
from itertools import accumulate

import torch
from torch import Tensor

from core.contracts.attention import AttentionBatch, AttentionSpec
from core.contracts.platform import SchedulingLimits
from core.errors import ContractViolation


def check_batch(
    batch: AttentionBatch, spec: AttentionSpec, limits: SchedulingLimits, torch_device: str
) -> None:
    """Raises ContractViolation with the first problem found."""
    for check in (_counts(batch), _tensors(batch, torch_device), _shape(batch, limits), _slots(batch, spec)):
        for problem in check:
            raise ContractViolation(f"simulated: {problem}")


def _counts(batch: AttentionBatch) -> Iterator[str]:
    if len(batch.query_lens) != len(batch.lengths):
        yield f"{len(batch.query_lens)} query_lens for {len(batch.lengths)} lengths"
    for i, (new, length) in enumerate(zip(batch.query_lens, batch.lengths, strict=True)):
        if not 1 <= new <= length:
            yield f"sequence {i} has {new} new tokens and a length of {length}"
        if i < batch.num_decodes and new != 1:
            yield f"sequence {i} of {batch.num_decodes} decodes has {new} new tokens"
    if not 0 <= batch.num_decodes <= len(batch.lengths):
        yield f"{batch.num_decodes} decodes among {len(batch.lengths)} sequences"


def _tensors(batch: AttentionBatch, torch_device: str) -> Iterator[str]:
    count, device = len(batch.lengths), torch.device(torch_device)
    expected = (
        ("query_start", batch.query_start, torch.int32, 1),
        ("seq_lengths", batch.seq_lengths, torch.int32, 1),
        ("block_tables", batch.block_tables, torch.int32, 2),
        ("slot_mapping", batch.slot_mapping, torch.int64, 1),
    )
    for name, tensor, dtype, axes in expected:
        if (tensor.dtype, tensor.device, tensor.dim()) != (dtype, device, axes) or not tensor.is_contiguous():
            yield (
                f"{name} is {list(tensor.shape)} {tensor.dtype} on {tensor.device}; "
                f"expected {axes} dense axes of {dtype} on {device}"
            )
    if batch.block_tables.shape[0] != count:
        yield f"block_tables has {batch.block_tables.shape[0]} rows for {count} sequences"
    if batch.query_start.tolist() != [0, *accumulate(batch.query_lens)]:
        yield f"query_start is {batch.query_start.tolist()} for query_lens {list(batch.query_lens)}"
    if batch.seq_lengths.tolist() != list(batch.lengths):
        yield f"seq_lengths is {batch.seq_lengths.tolist()} for lengths {list(batch.lengths)}"


def _shape(batch: AttentionBatch, limits: SchedulingLimits) -> Iterator[str]:
    count, num_tokens = len(batch.lengths), len(batch.slot_mapping)
    if limits.separate_steps and 0 < batch.num_decodes < count:
        prompts = count - batch.num_decodes
        yield f"a step mixes {batch.num_decodes} decodes with {prompts} prompts (separate_steps)"
    if num_tokens % limits.token_multiple or num_tokens < sum(batch.query_lens):
        yield (
            f"a step of {sum(batch.query_lens)} tokens has {num_tokens} rows; "
            f"expected padding to a multiple of {limits.token_multiple} (token_multiple)"
        )
    if limits.max_num_seqs is not None and count > limits.max_num_seqs:
        yield f"a step has {count} sequences; at most {limits.max_num_seqs} are accepted (max_num_seqs)"


def _slots(batch: AttentionBatch, spec: AttentionSpec) -> Iterator[str]:
    size, window, tables = spec.block_size, spec.sliding_window, batch.block_tables.long()
    for i, (new, length) in enumerate(zip(batch.query_lens, batch.lengths, strict=True)):
        oldest = 0 if window is None else max(0, length - new - window + 1)
        needed = tables[i, oldest // size : -(-length // size)]
        if len(needed) < -(-length // size) - oldest // size or bool((needed <= 0).any()):
            yield f"the block table of sequence {i} lacks blocks for positions {oldest} to {length - 1}"
        if bool(tables[i, -(-length // size) :].any()):
            yield f"the block table of sequence {i} is not 0 past its length of {length}"
    owners, positions = _owners_and_positions(batch)
    written, padding = batch.slot_mapping.tensor_split([len(owners)])
    wrong = (tables[owners, positions // size] * size + positions % size != written).nonzero()
    if len(wrong):
        token = int(wrong[0])
        yield (
            f"slot {int(written[token])} is written for position {int(positions[token])} of sequence "
            f"{int(owners[token])}, which its block table places elsewhere"
        )
    if len(written.unique()) < len(written):
        yield "two tokens write the same slot"
    if bool(((padding < 0) | (padding >= size)).any()):
        yield "padding tokens are written outside block 0"


def _owners_and_positions(batch: AttentionBatch) -> tuple[Tensor, Tensor]:
    """Which sequence each real token belongs to, and where in it, [num_tokens] each."""
    new, lengths = torch.tensor(batch.query_lens), torch.tensor(batch.lengths)
    owners = torch.repeat_interleave(torch.arange(len(new)), new)
    first_rows = new.cumsum(0) - new
    return owners, torch.arange(len(owners)) - first_rows[owners] + (lengths - new)[owners]
