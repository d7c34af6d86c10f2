"""The pack: trials that train together on one device over one frozen base model.

Each training step runs one forward and backward over the concatenated batches of all slots,
[slots x batch, tokens]. Hooks on the sites add each slot's own low-rank term to its own rows;
nothing else in the base model mixes rows, so a slot learns exactly what it would learn alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from autolr.data.batches import TokenSet, batch_order
from autolr.data.tasks import Task
from autolr.errors import RunError
from autolr.model.adapters import check, initial_a, scaling, shapes
from autolr.model.backbone import Backbone, fresh_head
from autolr.model.device import devices_of
from autolr.model.labelled import forward, with_places
from autolr.pack import scoring
from autolr.pack.crew import Crew
from autolr.pack.graphs import Graphs
from autolr.pack.hooks import Hooks, Part
from autolr.pack.memory import give_back, is_out_of_memory, moved, release, to_device
from autolr.pack.optimizer import RowAdamW, schedule_factor
from autolr.pack.rows import Block, Layout
from autolr.pack.slots import Slot, SlotConfig
from autolr.study import MethodKind, Role, Training

# The running average of a slot's weights gives step t the weight (c + 1) / (t + c).
AVERAGE_C = 8.0
# On a CPU freed memory goes back to the machine after so many passes.
GIVE_BACK = 32
# Slots of a pass are multiplied together, at the largest of their ranks, while that is less than this many times
# the rank of each: fewer products, and little more work.
SPREAD = 4
# Over a base in half precision, a GPU's texts are padded to a multiple of so many tokens: its products are quicker.
MULTIPLE = 8


class Pack:
    """Slots over one frozen base model.

    Args:
        backbone: the frozen base; the pack puts hooks on its modules until `close`.
        training: batch size and optimizer settings, the same for all slots.
        task: gives the loss of each example.
        data: tokenized *train* split.
        capacity: slots there is room for.
        max_rank: the largest rank of any slot.
        alpha: LoRA's alpha.
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
        alpha: float,
        kinds: Sequence[MethodKind] = ("lora",),
        roles: tuple[Role, ...] = ("q", "k", "v", "head"),
        together: int | None = None,
        passes: int | None = None,
        graphs: Graphs | None = None,
        thrifty: bool = True,
    ) -> None:
        self.backbone = backbone
        self.longest = backbone.max_length
        self.training = training
        self.task = task
        self.data = data
        self.capacity = capacity
        self.thrifty = thrifty
        self.alpha = alpha
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
        self.rows = torch.zeros(capacity, self.layout.columns, dtype=dtype, device=self.device)
        self.averages = torch.zeros_like(self.rows)
        self.optimizer = RowAdamW(self.layout, training, self.rows)
        self._grad = torch.zeros_like(self.rows)
        self._losses = self.rows.new_zeros(capacity)
        self._scales = self.rows.new_zeros(capacity)
        self._leaves: dict[tuple[int, int], dict[str, Tensor]] = {}
        # A pass computes as many logits as tokens are learned in it, which no recording of another pass does; and a
        # recording holds the work of one device.
        self.graphs = graphs if self.recordable else None
        self.budget = scoring.Budget.of(self)
        self._multiple = MULTIPLE if self.device.type == "cuda" and base.element_size() <= 2 else 1
        self._pending: list[tuple[list[Slot], Tensor]] = []
        self._passes = 0
        most = torch.get_num_threads() if self.device.type == "cpu" else 1
        self.crew = Crew(min(passes or most, -(-capacity // self.together)))
        self.hooks = Hooks(backbone, sites, self.kinds, dtype)

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
        self.layout.write(self.rows[index], values)
        self.averages[index].copy_(self.rows[index])
        self.optimizer.reset(index)
        self._scales[index] = scaling(config.kind, self.alpha, config.rank)
        return slot

    def _firsts(self, config: SlotConfig) -> list[int]:
        """Return the place of the first slot of each kind of slots that come after this one."""
        places = [slot.config.place for slot in self.slots[:-1]]
        return [at for at, place in enumerate(places) if place < config.place and place not in places[:at]]

    def _move(self, source: int, target: int) -> None:
        """Give row `target` what row `source` has."""
        if source != target:
            self.rows[target].copy_(self.rows[source])
            self.averages[target].copy_(self.averages[source])
            self.optimizer.move(source, target)
            self._scales[target] = self._scales[source]
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
        rows = self.averages if averaged else self.rows
        return self.layout.read(rows[self.slots.index(slot)], self._shapes(slot.config))

    def state(self, slot: Slot) -> dict[str, Tensor]:
        """Return copies, on the CPU, of all that a slot's training resumes from, such as `weights.<tensor>`."""
        index, own = self.slots.index(slot), self._shapes(slot.config)
        return {
            f"{part}.{name}": tensor
            for part, rows in self._buffers().items()
            for name, tensor in self.layout.read(rows[index].cpu(), own).items()
        }

    def restore(
        self, config: SlotConfig, state: Mapping[str, Tensor], step: int, losses: Sequence[float], tokens: int
    ) -> Slot:
        """Let a trial go on in a free slot.

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
            for part, rows in self._buffers().items():
                row = rows[self.slots.index(slot)]
                host = row.cpu()  # of a CPU the row itself
                for name in self._shapes(config):
                    self.layout.fill(host, name, state[f"{part}.{name}"])
                row.copy_(host)
        except (KeyError, RuntimeError):
            self.evict(slot)
            raise
        slot.step, slot.losses, slot.tokens = step, list(losses), tokens
        return slot

    def _buffers(self) -> dict[str, Tensor]:
        moments = {"mean": self.optimizer.mean, "square": self.optimizer.square}
        return {"weights": self.rows, "average": self.averages, **moments}

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
        self._grad[:active].zero_()
        self._train_all(groups)
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
        """Move rows and averages by the gradients, and return copies of the losses, [active].

        All memory is taken before anything moves, so a step for which there was none can be taken again.
        """
        active = len(self.slots)
        counts = [slot.step + 1 for slot in self.slots]
        weights = [(AVERAGE_C + 1) / (count + AVERAGE_C) for count in counts]
        while True:
            try:
                losses, column = self._losses[:active].clone(), to_device(weights, self.rows).unsqueeze(1)
                self.optimizer.step(self._grad[:active], counts, self._rates())
                break
            except (RuntimeError, MemoryError) as error:
                if not (self.thrifty and is_out_of_memory(error)):
                    raise
            self._make_room()
            if self.optimizer.scratch == 1:
                raise RunError("the optimizer's step does not fit the device's memory; set search.slots to fewer")
            self.optimizer.scratch = max(1, min(self.optimizer.scratch, self.layout.columns) // 4)
        self.averages[:active].lerp_(self.rows[:active], column)
        return losses

    def _make_room(self) -> None:
        """Give back the memory that recorded passes and leaves hold."""
        self.graphs = None
        self._leaves = {}
        release(self.device)

    def _train(self, group: slice) -> None:
        """Leave the losses and gradients of the slots of a group in their buffers."""
        slots = self.slots[group]
        losses = self._losses[group].zero_()

        def work(batch: dict[str, Tensor], share: Tensor | float = 1.0) -> None:
            self._bind_leaves(group)
            each = self.task.batch_losses(self.forward(batch), batch["labels"], len(slots)) * share
            each.sum().backward()  # type: ignore[no-untyped-call]
            losses.add_(each.detach())

        parts, batch = max(slot.parts for slot in slots), [slot.order[slot.step] for slot in slots]
        if parts > 1:
            for rows, share in self._shares(slots, parts):
                work(self.gather(self.data, rows), share)
        elif self.graphs:
            # All ranks are padded to the largest, so that the slots' kinds and roles alone tell passes apart.
            used = (*(slot.config.kind for slot in slots), frozenset(role for s in slots for role in s.config.roles))
            self.graphs.run((group.start, used), self.gather(self.data, batch), work)
        else:
            work(self.gather(self.data, batch))

    def _shares(self, slots: list[Slot], parts: int) -> Iterator[tuple[list[list[int]], Tensor]]:
        """Yield a part of each slot's batch, and of how much of its loss that part is the mean, [slots]."""
        whole = [slot.order[slot.step] for slot in slots]
        of_all = self.task.counts(self.data.collate(sum(whole, []))["labels"], len(slots))
        for part in zip(*(np.array_split(rows, parts) for rows in whole), strict=True):
            rows = [own.tolist() for own in part]
            labels = self.data.collate(sum(rows, []))["labels"]
            yield rows, (self.task.counts(labels, len(slots)) / of_all.double()).to(self.rows)

    def _train_all(self, groups: list[slice]) -> None:
        """Train all groups; where the memory runs out, what did not fit slot by slot."""
        short: list[slice] = []

        def attempt(group: slice) -> None:
            if not self._fits(group):
                short.append(group)

        self.crew.work(attempt, groups)
        if not short:
            return
        self._make_room()
        self.together = max(1, self.together // 2)
        self.crew.halve()
        for place in (place for group in short for place in range(group.start, group.stop)):
            slot, alone = self.slots[place], slice(place, place + 1)
            rows = slot.order[slot.step]
            while not self._fits(alone):
                release(self.device)
                if slot.parts >= len(rows):
                    longest = max(len(self.data.ids[row]) for row in rows)
                    slot.unfit = (
                        f"one example of {longest} tokens does not fit the device's memory, trained by itself"
                    )
                    self._losses[place] = math.nan
                    break
                slot.parts = min(len(rows), 2 * slot.parts)

    def _fits(self, group: slice) -> bool:
        """Train a group; tell whether there was the memory for it, and leave no gradient where there was not."""
        try:
            self._train(group)
        except (RuntimeError, MemoryError) as error:
            if not (self.thrifty and is_out_of_memory(error)):
                raise
            self._grad[group].zero_()
            return False
        return True

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
        return scoring.evaluate(self, slots, data, averaged=averaged)

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

    def _parts(self, slots: list[Slot], *, padded: bool) -> list[tuple[slice, MethodKind, int]]:
        """Return each run of slots that are multiplied together, their method, and the rank they are padded to."""
        parts: list[tuple[slice, MethodKind, int]] = []
        for place, slot in enumerate(slots):
            kind, own = slot.config.kind, self.layout.max_rank if padded else slot.config.rank
            run, before, rank = parts[-1] if parts else (slice(0, 0), kind, own)
            if parts and before == kind and rank < SPREAD * max(1, own):
                parts[-1] = (slice(run.start, place + 1), kind, rank)
            else:
                parts.append((slice(place, place + 1), kind, own))
        return parts

    def _bind_leaves(self, group: slice) -> None:
        """Point the hooks at a group of rows, as leaves whose gradients land in one buffer.

        They are added there: a leaf of several rows has gaps, and torch warns of a gradient with gaps in `grad`.
        """
        key = (group.start, group.stop)
        if key not in self._leaves:
            self._leaves[key] = {}
            for name in self.layout.segments:
                leaf = self.layout.view(self.rows[group], name).detach().requires_grad_()
                land = partial(_land, self.layout.view(self._grad[group], name))
                leaf.register_post_accumulate_grad_hook(land)  # type: ignore[no-untyped-call]
                self._leaves[key][name] = leaf
        self._point(self._leaves[key], self.slots[group], self._scales[group], padded=self.graphs is not None)

    def bind(self, slots: list[Slot], *, averaged: bool) -> None:
        """Point the hooks at the rows of some slots, in their order; neighbours are not copied."""
        places = [self.slots.index(slot) for slot in slots]
        rows, scales = self.averages if averaged else self.rows, self._scales
        if places == list(range(places[0], places[0] + len(places))):
            rows, scales = rows[places[0] : places[-1] + 1], scales[places[0] : places[-1] + 1]
        else:
            picked = moved(torch.tensor(places), self.device)
            rows, scales = rows.index_select(0, picked), scales.index_select(0, picked)
        tensors = {name: self.layout.view(rows, name) for name in self.layout.segments}
        self._point(tensors, slots, scales, padded=False)

    def _point(self, tensors: dict[str, Tensor], slots: list[Slot], scales: Tensor, *, padded: bool) -> None:
        now = self.hooks.now
        now.parts = [
            Part(run, kind, self.layout.narrow(tensors, run, rank), scales[run].view(-1, 1, 1))
            for run, kind, rank in self._parts(slots, padded=padded)
        ]
        now.head = {name: tensor for name, tensor in tensors.items() if self.layout.segments[name].role == "head"}
        now.used = {role for slot in slots for role in slot.config.roles}


def _land(place: Tensor, leaf: Tensor) -> None:
    """Add the gradient of a leaf to its place, where that of a batch's earlier parts is, and give back its memory."""
    if leaf.grad is not None:
        place.add_(leaf.grad)
        leaf.grad = None
