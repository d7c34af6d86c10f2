"""The pack: trials that train together on one device over one frozen base model.

  slot 0       slot 1       slot 2        trials: rates, rank, seed, batches
[8, tokens]  [8, tokens]  [8, tokens]     each on its own next batch
     |            |            |
     +----- concatenated ------+          one batch [3 * 8, tokens]
                  |
    +-------------v--------------+
    |  frozen base: one forward  |        x W, once for the rows of all slots
    |                            |
    |  at each tuned matrix      |        hooks add to the rows of slot i
    |  + s_i x A_i^T B_i^T       |        its own term, by batched products
    |                            |
    |  head_i                    |        and its own head
    +-------------+--------------+
                  |
     +------------+------------+
  loss 0       loss 1       loss 2        the mean of each slot's own rows
     +------------+------------+
                  | sum
         one backward pass                slot i's gradient is that of loss i alone
                  |
    +-------------v--------------+
    |  row block                 |        row i: A, B and head of slot i
    |  row optimizer, averages   |        each row: own rates, step count, gradient norm
    +----------------------------+
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from autolr.data.batches import TokenSet, batch_order
from autolr.data.tasks import Task
from autolr.errors import RunError
from autolr.model.adapters import check, initial_a, scaling, shapes
from autolr.model.backbone import Backbone, fresh_head
from autolr.model.device import devices_of
from autolr.model.sparse_logits import forward, with_places
from autolr.pack import retreat, scoring
from autolr.pack.binding import Binding
from autolr.pack.graphs import Graphs
from autolr.pack.hooks import Hooks
from autolr.pack.layout import Block, Layout
from autolr.pack.memory import give_back, moved, release
from autolr.pack.optimizers import DEFAULT
from autolr.pack.row_block import RowBlock
from autolr.pack.schedule import schedule_factor
from autolr.pack.slots import Slot, SlotConfig
from autolr.pack.thread_pool import ThreadPool
from autolr.schema.space import MethodKind, Role
from autolr.schema.training import Training

# On a CPU freed memory goes back to the machine after so many passes.
GIVE_BACK = 32
# Over a base in half precision, a GPU's texts are padded to a multiple of so many tokens: its products are quicker.
MULTIPLE = 8


class Pack:
    """Slots over one frozen base model, each of which learns what it would learn alone.

    Slot i computes h = x W^T + s_i x A_i^T B_i^T on its own rows of the shared batch. No other operation of the base
    mixes rows, and the gradient of the losses' sum by A_i is that of loss i: the pass is shared, the trainings are
    not. `tests/pack/test_packed_equals_alone.py` compares each slot with stock PEFT and torch's optimizer. Adapters
    that share a base's pass are the idea of mLoRA (Ye et al., 2023, arXiv:2312.02515).

    Example:
        >>> base = load("demo:all-MiniLM-L6-v2", ["bad", "good"], "cpu", "fp32")
        >>> texts, labels = ["a fine film", "a dull film"] * 8, [1, 0] * 8
        >>> data = TokenSet(tokenize(base.tokenizer, texts, 16), labels, base.tokenizer.pad_token_id)
        >>> options = {"capacity": 2, "max_rank": 8, "lora_alpha": 16.0}
        >>> with Pack(base, Training(batch_size=4), Classification(("bad", "good")), data, **options) as pack:
        ...     for lr in (1e-3, 4e-3):
        ...         slot = pack.admit(SlotConfig({"q": lr / 4, "v": lr, "head": 5e-3}, rank=8, seed=0, steps=12))
        ...     while not slot.done:
        ...         pack.step()
        ...     [slot.losses[-1] < slot.losses[0] for slot in pack.slots]
        [True, True]

    Args:
        backbone: the frozen base; the pack puts hooks on its modules until `close`.
        training: batch size and optimizer settings, the same for all slots.
        task: gives the loss of each example.
        data: tokenized *train* split.
        capacity: slots there is room for.
        max_rank: the largest rank of any slot.
        lora_alpha: LoRA's alpha.
        kinds: the methods any slot may have; a pack with full has columns for whole matrices in every slot.
        roles: the roles any slot may train.
        together: slots that share a forward pass; None: all on a GPU, one on a CPU, where
            a pass of its own for each slot costs nothing and spares padding and memory. Always one
            where `Projections.shared_input`.
        passes: that run side by side on a CPU, each with its share of the cores: less is lost than
            by cores that share every product. None: as many as torch has threads.
        graphs: records training passes and replays them, on a GPU; None: each pass runs as it is.
        thrifty: go on where the memory runs out: with fewer slots at a time, then with batches in parts, which take
            the same steps; a slot that does not fit even so is `unfit`, and the others are unharmed. Else raise.
        optimizer: one of `autolr.pack.optimizers`.

    Slots lie in the order of their ranks, the largest first, and of their methods.
    """

    def __init__(
        self,
        backbone: Backbone,
        training: Training,
        task: Task,
        data: TokenSet,
        *,
        capacity: int,
        max_rank: int,
        lora_alpha: float,
        kinds: Sequence[MethodKind] = ("lora",),
        roles: tuple[Role, ...] = ("q", "k", "v", "head"),
        together: int | None = None,
        passes: int | None = None,
        graphs: Graphs | None = None,
        thrifty: bool = True,
        optimizer: str = DEFAULT,
    ) -> None:
        self.backbone = backbone
        self.longest = backbone.max_length
        self.training = training
        self.task = task
        self.data = data
        self.capacity = capacity
        self.thrifty = thrifty
        self.lora_alpha = lora_alpha
        self.kinds = tuple(kinds)
        self.slots: list[Slot] = []
        sites = [site for site in backbone.projections.sites if site.role in roles]
        for kind in self.kinds:
            check(backbone, sites, kind)
        self.layout = Layout(backbone, max_rank, roles, self.kinds)
        base = next(backbone.model.parameters())
        self.device = base.device
        self.together = together or (1 if self.device.type == "cpu" else capacity)
        if backbone.projections.shared_input:
            self.together = 1
        dtype = torch.float64 if base.dtype == torch.float64 else torch.float32
        self.block = RowBlock(self.layout, training, optimizer, capacity, dtype, self.device)
        self.rows, self.averages, self.optimizer = self.block.rows, self.block.averages, self.block.optimizer
        # A pass computes as many logits as tokens are learned in it, which no recording of another pass does; and a
        # recording holds the work of one device.
        self.graphs = graphs if self.recordable else None
        self.budget = scoring.Budget.of(self)
        self._multiple = MULTIPLE if self.device.type == "cuda" and base.element_size() <= 2 else 1
        self._pending: list[tuple[list[Slot], Tensor]] = []
        self._passes = 0
        most = torch.get_num_threads() if self.device.type == "cpu" else 1
        self.crew = ThreadPool(min(passes or most, -(-capacity // self.together)))
        self.hooks = Hooks(backbone, sites, self.kinds, dtype)
        self.binding = Binding(self.hooks, self.block)

    def __enter__(self) -> Pack:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the hooks off the base model."""
        self.crew.close()
        self.hooks.close()

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Devices of the base, the first one's first; the rows are there too."""
        return devices_of(self.backbone.model)

    @property
    def recordable(self) -> bool:
        """Whether passes can be recorded: unless texts are learned, or the base lies on several devices."""
        return not self.data.of_language and len(self.devices) == 1

    @property
    def free(self) -> int:
        """Slots without a trial."""
        return self.capacity - len(self.slots)

    def admit(self, config: SlotConfig) -> Slot:
        """Start a trial in a free slot, at its own step 0."""
        if not self.free:
            raise ValueError(f"all {self.capacity} slots are taken")
        if config.kind not in self.kinds:
            raise ValueError(f"kind {config.kind} is none of the pack's: {', '.join(self.kinds)}")
        if config.rank > self.layout.max_rank:
            raise ValueError(f"rank {config.rank} is above the pack's largest, {self.layout.max_rank}")
        order = batch_order(self.data.lengths(), self.training.batch_size, config.length, config.seed)
        slot, values = Slot(config, order), self.initial_values(config)
        self.slots.append(slot)
        index = len(self.slots) - 1
        for first in reversed(self._firsts(config)):
            self._move(first, index)
            index = first
        self.slots[index] = slot
        self.block.start(index, values, scaling(config.kind, self.lora_alpha, config.rank))
        return slot

    def _firsts(self, config: SlotConfig) -> list[int]:
        """Return the place of the first slot of each kind of slots that come after this one."""
        places = [slot.config.place for slot in self.slots[:-1]]
        return [at for at, place in enumerate(places) if place < config.place and place not in places[:at]]

    def _move(self, source: int, target: int) -> None:
        """Give row `target` what row `source` has."""
        if source != target:
            self.block.move(source, target)
            self.slots[target] = self.slots[source]

    def initial_values(self, config: SlotConfig) -> dict[str, Tensor]:
        """Return the tensors a slot starts from; B is zero and left out.

        A slot that freezes a role has its matrices or their lengths all the same: they stay what they are.
        """
        values = dict(self.hooks.first[config.kind])
        if config.kind != "full":
            sites = [site for site in self.backbone.projections.sites if site.role in config.roles]
            values |= {f"{site.name}.lora_A": initial_a(site, config.rank, config.seed) for site in sites}
        return {**values, **fresh_head(self.backbone, config.seed)}

    def evict(self, slot: Slot) -> None:
        """Free a slot; the last row of its kind moves into its place, and so on, so active rows stay together."""
        index = self.slots.index(slot)
        ends = {other.config.place: place for place, other in enumerate(self.slots)}
        for last in sorted(place for place in ends.values() if place >= index):
            self._move(last, index)
            index = last
        self.slots.pop()

    def values(self, slot: Slot, *, averaged: bool = False) -> dict[str, Tensor]:
        """Return copies of a slot's tensors, named as `autolr.model.adapters.values_of` does."""
        return self.block.read(self.slots.index(slot), self._shapes(slot.config), averaged=averaged)

    def state(self, slot: Slot) -> dict[str, Tensor]:
        """Return copies, on the CPU, of all that a slot's training resumes from, such as `weights.<tensor>`."""
        return self.block.state(self.slots.index(slot), self._shapes(slot.config))

    def restore(
        self, config: SlotConfig, state: Mapping[str, Tensor], step: int, losses: Sequence[float], tokens: int
    ) -> Slot:
        """Resume a trial in a free slot.

        Args:
            config: the one it was admitted with.
            state: what `state` has returned of it.
            step: optimizer steps it had done by then.
            losses: of these steps.
            tokens: it had trained.

        Raises:
            KeyError: the state lacks a tensor.
            RuntimeError: a tensor has another shape.
        """
        slot = self.admit(config)
        try:
            self.block.restore(self.slots.index(slot), self._shapes(config), state)
        except (KeyError, RuntimeError):
            self.evict(slot)
            raise
        slot.step, slot.losses, slot.tokens = step, list(losses), tokens
        return slot

    def _shapes(self, config: SlotConfig) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the tensors that a slot trains."""
        own = {n: tuple(p.shape) for n, p in self.backbone.head_parameters().items()}
        for site in self.backbone.projections.sites:
            if site.role in config.roles:
                own |= shapes(site, config.rank, config.kind)
        return own

    def step(self) -> None:
        """Take one optimizer step in every slot, each on its own next batch.

        Raises:
            RunError: the device has no memory for the optimizer's step.
        """
        active = len(self.slots)
        groups = self.groups(active)
        self.block.gradients[:active].zero_()
        for place in retreat.train(self, groups):
            self.block.losses[place] = math.nan
        self._pending.append((list(self.slots), self._update()))
        for slot in self.slots:
            slot.tokens += sum(len(self.data.ids[row]) for row in slot.order[slot.step])
            slot.step += 1
        if self.device.type == "cpu":
            self.flush()
            self._passes += len(groups)
            if self._passes >= GIVE_BACK:
                self._passes = 0
                give_back()

    def _update(self) -> Tensor:
        """Move rows and averages by the gradients, and return copies of the losses, [active]."""
        counts, rates = [slot.step + 1 for slot in self.slots], self._rates()
        while (taken := retreat.attempt(lambda: self.block.step(counts, rates), thrifty=self.thrifty)) is None:
            self.make_room()
            if not self.optimizer.shrink():
                raise RunError("the optimizer's step does not fit the device's memory; set search.slots to fewer")
        losses, weights = taken
        self.block.average(weights)
        return losses

    def make_room(self) -> None:
        """Give back the memory that recorded passes and leaves hold."""
        self.graphs = None
        self.binding.forget()
        release(self.device)

    def drop_gradients(self, group: slice) -> None:
        """Set the gradients of a group to 0."""
        self.block.gradients[group].zero_()

    def train(self, group: slice) -> None:
        """Leave the losses and gradients of the slots of a group in their buffers."""
        slots = self.slots[group]
        losses = self.block.losses[group].zero_()

        def work(batch: dict[str, Tensor], share: Tensor | float = 1.0) -> None:
            self.binding.to_train(slots, group, padded=self.graphs is not None)
            each = self.task.batch_losses(self.forward(batch), batch["labels"], len(slots)) * share
            each.sum().backward()  # type: ignore[no-untyped-call]
            losses.add_(each.detach())

        parts, batch = max(slot.parts for slot in slots), [slot.order[slot.step] for slot in slots]
        if parts > 1:
            for rows, share in retreat.shares(self.task, self.data, slots, parts):
                work(self.gather(self.data, rows), share.to(self.rows))
        elif self.graphs:
            # All ranks are padded to the largest, so that the slots' kinds and roles alone tell passes apart.
            used = (*(slot.config.kind for slot in slots), frozenset(role for s in slots for role in s.config.roles))
            self.graphs.run((group.start, used), self.gather(self.data, batch), work)
        else:
            work(self.gather(self.data, batch))

    @property
    def lag(self) -> int:
        """Steps whose losses are still on the device."""
        return len(self._pending)

    def flush(self) -> None:
        """Bring the losses of the last steps from the device; the only time that training waits for it."""
        for slots, losses in self._pending:
            for slot, loss in zip(slots, losses.tolist(), strict=True):
                slot.losses.append(loss)
        self._pending = []

    def groups(self, count: int) -> list[slice]:
        """Return the places of slots that share a pass."""
        return [slice(start, min(start + self.together, count)) for start in range(0, count, self.together)]

    def evaluate(self, slots: Sequence[Slot], data: TokenSet, *, averaged: bool) -> tuple[Tensor, Tensor]:
        """Score several slots on the same examples, in shared forward passes.

        A pass holds what `budget` allows. If memory runs out all the same, the budget is halved, and stays so.

        Args:
            slots: whom to score.
            data: the examples.
            averaged: score the running average of the weights, not the weights.

        Returns:
            Losses and predictions, both float64 [slots, examples] on the CPU.

        Raises:
            RunError: not even one example of one slot fits the device's memory.
        """
        return retreat.evaluate(self, slots, data, averaged=averaged)

    def gather(self, data: TokenSet, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Return the rows of each slot as one batch on the device."""
        batch = with_places(data.collate(sum(map(list, rows), []), self._multiple, self.longest))
        return {key: moved(value, self.device) for key, value in batch.items()}

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the logits of a batch of the slots that the hooks are pointed at, in the rows' type."""
        self.hooks.now.batch = batch["input_ids"].shape[0]
        return forward(self.backbone.model, batch).to(self.rows)

    def _rates(self) -> dict[Block, list[float]]:
        factors = [schedule_factor(self.training, slot.step, slot.config.steps) for slot in self.slots]
        return {
            block: [
                rate * factor if (rate := slot.config.rate(block)) > 0 else -1.0
                for slot, factor in zip(self.slots, factors, strict=True)
            ]
            for block in self.layout.blocks
        }

    def bind(self, slots: list[Slot], *, averaged: bool) -> None:
        """Point the hooks at the rows of some slots, in their order."""
        self.binding.to_score(slots, [self.slots.index(slot) for slot in slots], averaged=averaged)
