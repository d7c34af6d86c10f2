r"""Which rows of a fused projection are W_q, W_k and W_v, family by family.

With n query heads, m key and value heads and heads of size h, a fused matrix has (n + 2 m) h rows, in one of two
orders. Here n = 4 and m = 2; a line is a head, h rows of W, and LoRA trains W_q and W_v alone (see
`autolr.model.fused_peft`):

    stacked            by group                    B [(n + 2 m) h, 2 r]        A [2 r, d_in]
    all q, k, v        m times: n/m q, k, v        of the order by group

    +-----+            +-----+                     +------+------+
    | q 0 |            | q 0 | \                   | B_q  |  0   |
    | q 1 |            | q 1 |  | group 0          | B_q  |  0   |
    | q 2 |            | k 0 |  |                  |  0   |  0   |             +-----------+
    | q 3 |            | v 0 | /                   |  0   | B_v  |      x      | A_q       | r rows
    | k 0 |            | q 2 | \                   | B_q  |  0   |             | A_v       | r rows
    | k 1 |            | q 3 |  | group 1          | B_q  |  0   |             +-----------+
    | v 0 |            | k 1 |  |                  |  0   |  0   |
    | v 1 |            | v 1 | /                   |  0   | B_v  |
    +-----+            +-----+                     +------+------+

    = the change of W: its q rows get B_q A_q, its v rows B_v A_v, and its k rows exactly zero.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Rows:
    """Some rows of a matrix: in each of `groups` equal parts of its `total` rows, `start` to `stop`."""

    total: int
    groups: int
    start: int
    stop: int

    @property
    def count(self) -> int:
        """How many rows they are."""
        return self.groups * (self.stop - self.start)

    def of(self, matrix: Tensor) -> Tensor:
        """Return these rows of `matrix` [..., total, columns] as a view [..., groups, stop - start, columns]."""
        parts: Tensor = matrix.unflatten(-2, (self.groups, self.total // self.groups))  # type: ignore[no-untyped-call]
        return parts[..., self.start : self.stop, :]

    def index(self) -> list[int]:
        """Return the numbers of the rows, in their order."""
        width = self.total // self.groups
        return [group * width + row for group in range(self.groups) for row in range(self.start, self.stop)]


def _stacked(total: int, heads: int, kv: int, size: int) -> dict[str, Rows]:
    q, k = heads * size, (heads + kv) * size
    return {"q": Rows(total, 1, 0, q), "k": Rows(total, 1, q, k), "v": Rows(total, 1, k, total)}


def _by_group(total: int, heads: int, kv: int, size: int) -> dict[str, Rows]:
    q = heads // kv * size
    return {
        "q": Rows(total, kv, 0, q),
        "k": Rows(total, kv, q, q + size),
        "v": Rows(total, kv, q + size, q + 2 * size),
    }


Order = Callable[[int, int, int, int], dict[str, Rows]]


def _same(order: Order) -> Callable[[Any], tuple[Order, int]]:
    """Every query head has its own key and value."""
    return lambda config: (order, config.num_attention_heads)


def _grouped(config: Any) -> tuple[Order, int]:
    return _stacked, config.num_key_value_heads


def _falcon(config: Any) -> tuple[Order, int]:
    if config.new_decoder_architecture:
        return _by_group, config.num_kv_heads
    return (_stacked, 1) if config.multi_query else (_by_group, config.num_attention_heads)


def _gpt_bigcode(config: Any) -> tuple[Order, int]:
    return (_stacked, 1) if config.multi_query else (_by_group, config.num_attention_heads)


# Family: the attention module's child, and the order of its rows with the number of key and value heads.
_FUSED: dict[str, tuple[str, Callable[[Any], tuple[Order, int]]]] = {
    "bloom": ("query_key_value", _same(_by_group)),
    "falcon": ("query_key_value", _falcon),
    "gpt2": ("c_attn", _same(_stacked)),
    "gpt_bigcode": ("c_attn", _gpt_bigcode),
    "gpt_neox": ("query_key_value", _same(_by_group)),
    "modernbert": ("Wqkv", _same(_stacked)),
    "mpt": ("Wqkv", _same(_stacked)),
    "openai-gpt": ("c_attn", _same(_stacked)),
    "persimmon": ("query_key_value", _same(_by_group)),
    "phi3": ("qkv_proj", _grouped),
}
CHILDREN: dict[str, str] = {family: child for family, (child, _) in _FUSED.items()}
# What families call W_o, a child of the attention module; BERT and its like have it in attention.output.dense.
OUTPUTS = ("o_proj", "out_proj", "out_lin", "Wo", "dense", "c_proj")
_IS_OUTPUT = re.compile(
    rf"(^|[.])(attention[.]output[.]dense|(attention|self_attention|attn|self_attn|sa)[.]({'|'.join(OUTPUTS)}))$"
)
# Where layers keep the matrices of their MLP: BERT's intermediate and output, OPT's fc1 and fc2, ffn or mlp.
_IS_MLP = re.compile(r"[.]\d+[.](mlp|ffn|feed_forward|block_sparse_moe|intermediate|output|fc1|fc2)([.]|$)")
# What chooses the experts, or weighs them, is no matrix of theirs.
_ROUTERS = ("gate", "router", "shared_expert_gate")
# Families whose q_proj makes, head by head, the query and then a gate on the attention's output.
_GATED = ("qwen3_next", "qwen3_5")


def fused(config: Any, total: int) -> dict[str, Rows]:
    """Return the rows of each role in the fused matrix of a family in `CHILDREN`.

    Args:
        config: the (text) model's configuration.
        total: rows of the matrix.

    Raises:
        ValueError: the matrix cannot be one of this configuration.
    """
    order, kv = _FUSED[config.model_type][1](config)
    heads = int(config.num_attention_heads)
    size, rest = divmod(total, heads + 2 * kv)
    if rest or heads % kv:
        raise ValueError(f"{total} rows do not make {heads} query heads and {kv} key and value heads of one size")
    return order(total, heads, kv, size)


def gated(attention: nn.Module, config: Any, total: int) -> Rows | None:
    """Return the rows of W_q in a q_proj that also makes a gate; None where all rows are W_q.

    Args:
        attention: the module that holds the q_proj.
        config: the (text) model's configuration.
        total: rows of the q_proj.
    """
    if not str(getattr(config, "model_type", "")).startswith(_GATED):
        return None
    size = int(getattr(attention, "head_dim", config.head_dim))
    heads = int(config.num_attention_heads)
    return Rows(total, heads, 0, size) if total == 2 * heads * size else None


def is_output(name: str) -> bool:
    """Return True if a module's full name is that of an output projection W_o."""
    return _IS_OUTPUT.search(name) is not None


def is_mlp(name: str) -> bool:
    """Return True if a module's full name is that of a matrix of an MLP, provided it is a matrix."""
    leaf = name.rpartition(".")[2]
    return leaf not in _ROUTERS and "norm" not in leaf.lower() and _IS_MLP.search(name) is not None
