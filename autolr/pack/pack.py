"""The pack: trials that train together on one device over one frozen base model.

Each training step runs one forward and backward over the concatenated batches of all slots,
[slots x batch, tokens]. Hooks on the sites add each slot's own low-rank term to its own rows;
nothing else in the base model mixes rows, so a slot learns exactly what it would learn alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from autolr.data.batches import TokenSet, batch_order, by_length
from autolr.data.tasks import Task
from autolr.errors import ModelError
from autolr.model.adapters import frozen, initial_a, scaling
from autolr.model.backbone import Backbone, fresh_head
from autolr.model.fused import stack
from autolr.model.projections import Site, by_module
from autolr.pack.crew import Crew
from autolr.pack.memory import give_back
from autolr.pack.optimizer import RowAdamW, schedule_factor
from autolr.pack.rows import Layout
from autolr.study import MethodKind, Role, Training

# The running average of a slot's weights gives step t the weight (c + 1) / (t + c).
AVERAGE_C = 8.0
# On a CPU freed memory goes back to the machine after so many passes.
GIVE_BACK = 32


@dataclass(frozen=True)
class SlotConfig:
    """What sets one slot apart from another.

    Attributes:
        rates: the rate of each role; 0 freezes it.
        rank: LoRA rank.
        seed: of adapter, head and data order.
        steps: the schedule's end.
        stop: steps after which the training ends before that; None: it does not.
        cool: last steps of the training, over which the rates fall to 0 whatever the schedule says.
    """

    rates: dict[Role, float]
    rank: int
    seed: int
    steps: int
    stop: int | None = None
    cool: int = 0

    @property
    def length(self) -> int:
        """Steps of the training."""
        return self.steps if self.stop is None else min(self.stop, self.steps)

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles that are trained."""
        return tuple(role for role, rate in self.rates.items() if rate > 0)


@dataclass(eq=False)
class Slot:
    """A trial inside a pack: its settings, how far it is, and its losses so far.

    Attributes:
        step: optimizer steps done.
        losses: of each step; on a GPU the last ones come with the next `Pack.flush`.
        tokens: trained so far, padding not counted.
    """

    config: SlotConfig
    order: list[list[int]]
    step: int = 0
    losses: list[float] = field(default_factory=list)
    tokens: int = 0

    @property
    def done(self) -> bool:
        """Whether the training is at its end."""
        return self.step >= self.config.length


class _Pass(threading.local):
    """What the hooks read in the forward pass that this thread is in.

    Attributes:
        bound: tensors of the pass's slots, [slots, ...], by name.
        scale: of each slot's adapters.
        used: roles that any of its slots trains.
        batch: rows of its input.
        twins: copies of the head's modules without hooks; a thread's own, since their tensors are replaced.
    """

    def __init__(self) -> None:
        self.bound: dict[str, Tensor] = {}
        self.scale = torch.zeros(0)
        self.used: set[Role] = set()
        self.batch = 0
        self.twins: dict[str, nn.Module] = {}


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
        kind: of the adapters, which says how alpha and rank scale them.
        roles: the roles any slot may train.
        together: slots that share a forward pass; None: all on a GPU, one on a CPU, where
            a pass of its own for each slot costs nothing and spares padding and memory. Always one
            where `Projections.shared_input`.
        passes: that run side by side on a CPU, each with its share of the cores: less is lost than
            by cores that share every product. None: as many as torch has threads.
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
        kind: MethodKind = "lora",
        roles: tuple[Role, ...] = ("q", "k", "v", "head"),
        together: int | None = None,
        passes: int | None = None,
    ) -> None:
        self.backbone = backbone
        self.training = training
        self.task = task
        self.data = data
        self.capacity = capacity
        self.alpha = alpha
        self.kind = kind
        self.slots: list[Slot] = []
        self.layout = Layout(backbone, max_rank, roles, magnitudes=kind == "dora")
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
        self._pass = _Pass()
        # A slot that freezes a role has its lengths all the same: they stay what they are.
        trained = [site for site in backbone.projections.sites if site.role in roles] if kind == "dora" else []
        self._frozen = {site.name: frozen(backbone, site) for site in trained}
        self._magnitudes = {
            f"{name}.lora_magnitude_vector": torch.linalg.vector_norm(weight.to(dtype), dim=1)
            for name, weight in self._frozen.items()
        }
        self._leaves: dict[tuple[int, int], dict[str, Tensor]] = {}
        self._pending: list[tuple[list[Slot], Tensor]] = []
        self._passes = 0
        most = torch.get_num_threads() if self.device.type == "cpu" else 1
        self._crew = Crew(min(passes or most, -(-capacity // self.together)))
        self._handles = self._attach()

    def __enter__(self) -> Pack:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the hooks off the base model."""
        self._crew.close()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @property
    def free(self) -> int:
        """Slots without a trial."""
        return self.capacity - len(self.slots)

    def admit(self, config: SlotConfig) -> Slot:
        """Start a trial in a free slot, at its own step 0."""
        if not self.free:
            raise ValueError(f"all {self.capacity} slots are taken")
        if config.rank > self.layout.max_rank:
            raise ValueError(f"rank {config.rank} is above the pack's largest, {self.layout.max_rank}")
        order = batch_order(self.data.lengths(), self.training.batch_size, config.length, config.seed)
        slot = Slot(config, order)
        index = len(self.slots)
        self.layout.write(self.rows[index], self.initial_values(config))
        self.averages[index].copy_(self.rows[index])
        self.optimizer.reset(index)
        self.slots.append(slot)
        return slot

    def initial_values(self, config: SlotConfig) -> dict[str, Tensor]:
        """Return the tensors a slot starts from; B is zero and left out."""
        sites = [site for site in self.backbone.projections.sites if site.role in config.roles]
        values = {f"{site.name}.lora_A": initial_a(site, config.rank, config.seed) for site in sites}
        return {**values, **self._magnitudes, **fresh_head(self.backbone, config.seed)}

    def evict(self, slot: Slot) -> None:
        """Free a slot; the last row moves into its place, so active rows stay together."""
        index, last = self.slots.index(slot), len(self.slots) - 1
        if index != last:
            self.rows[index].copy_(self.rows[last])
            self.averages[index].copy_(self.averages[last])
            self.optimizer.move(last, index)
            self.slots[index] = self.slots[last]
        self.slots.pop()

    def values(self, slot: Slot, *, averaged: bool = False) -> dict[str, Tensor]:
        """Return copies of a slot's tensors, named as `autolr.model.adapters.values_of` does."""
        rows = self.averages if averaged else self.rows
        return self.layout.read(rows[self.slots.index(slot)], slot.config.rank, (*slot.config.roles, "head"))

    def step(self) -> None:
        """Take one optimizer step in every slot, each on its own next batch."""
        active = len(self.slots)
        grad = self._grad[:active].zero_()
        losses = self.rows.new_zeros(active)

        def train(group: slice) -> None:
            slots = self.slots[group]
            batch = self._gather(slots)
            self._bind_leaves(group)
            each = self.task.losses(self._forward(batch), batch["labels"]).view(len(slots), -1).mean(1)
            each.sum().backward()  # type: ignore[no-untyped-call]
            losses[group] = each.detach()

        groups = self._groups(active)
        self._crew.work(train, groups)
        self.optimizer.step(grad, [slot.step + 1 for slot in self.slots], self._rates())
        for slot in self.slots:
            slot.step += 1
        self._pending.append((list(self.slots), losses))
        if self.device.type == "cpu":
            self.flush()
            self._passes += len(groups)
            if self._passes >= GIVE_BACK:
                self._passes = 0
                give_back()
        weights = [(AVERAGE_C + 1) / (slot.step + AVERAGE_C) for slot in self.slots]
        column = self.rows.new_tensor(weights).unsqueeze(1)
        self.averages[:active].lerp_(self.rows[:active], column)

    @property
    def lag(self) -> int:
        """Steps whose losses are still on the device."""
        return len(self._pending)

    def flush(self) -> None:
        """Bring the losses of the last steps from the device; the only time that training waits for it."""
        if self._pending:
            values = torch.cat([losses for _, losses in self._pending]).tolist()
            slots = [slot for group, _ in self._pending for slot in group]
            for slot, loss in zip(slots, values, strict=True):
                slot.losses.append(loss)
            self._pending = []

    def _groups(self, count: int) -> list[slice]:
        """Return the places of slots that share a pass."""
        return [slice(start, min(start + self.together, count)) for start in range(0, count, self.together)]

    def evaluate(
        self, slots: Sequence[Slot], data: TokenSet, *, averaged: bool, max_rows: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Score several slots on the same examples, in shared forward passes.

        Args:
            slots: whom to score.
            data: the examples.
            averaged: score the running average of the weights, not the weights.
            max_rows: examples times slots in one forward pass, about; None: what suits the device.

        Returns:
            Losses and predictions, both float64 [slots, examples] on the CPU.
        """
        max_rows = max_rows or (16 if self.device.type == "cpu" else 512)
        shape = (len(slots), len(data))
        losses, said = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)

        def score(group: slice) -> None:
            losses[group], said[group] = self._evaluate(list(slots[group]), data, averaged, max_rows)

        self._crew.work(score, self._groups(len(slots)))
        return losses, said

    @torch.no_grad()
    def _evaluate(self, slots: list[Slot], data: TokenSet, averaged: bool, max_rows: int) -> tuple[Tensor, Tensor]:
        count = len(slots)
        self._bind((self.averages if averaged else self.rows)[[self.slots.index(slot) for slot in slots]], slots)
        rows: list[int] = []
        losses, said = [], []
        for picked in by_length(data.lengths(), max(1, max_rows // count)):
            batch = {
                key: value.to(self.device, non_blocking=True).repeat(count, *[1] * (value.dim() - 1))
                for key, value in data.collate(picked).items()
            }
            logits = self._forward(batch)
            losses.append(self.task.losses(logits, batch["labels"]).view(count, -1))
            said.append(self.task.predictions(logits).view(count, -1))
            rows += picked
        back = torch.tensor(rows).argsort()  # from the order of lengths to that of the data
        return torch.cat(losses, 1).double().cpu()[:, back], torch.cat(said, 1).double().cpu()[:, back]

    def _gather(self, slots: list[Slot]) -> dict[str, Tensor]:
        picked: list[int] = []
        for slot in slots:
            rows = slot.order[slot.step]
            slot.tokens += sum(len(self.data.ids[row]) for row in rows)
            picked += rows
        batch = self.data.collate(picked)
        if self.device.type == "cuda":
            batch = {key: value.pin_memory() for key, value in batch.items()}
        return {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}

    def _forward(self, batch: dict[str, Tensor]) -> Tensor:
        self._pass.batch = batch["input_ids"].shape[0]
        output = self.backbone.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return output.logits.to(self.rows.dtype)  # type: ignore[no-any-return]

    def _rates(self) -> dict[Role, list[float]]:
        rates: dict[Role, list[float]] = {}
        for role in self.layout.roles:
            rates[role] = []
            for slot in self.slots:
                base = slot.config.rates.get(role, 0.0)
                factor = schedule_factor(self.training, slot.step, slot.config.steps)
                if slot.config.cool:
                    factor *= min(1.0, (slot.config.length - slot.step) / slot.config.cool)
                rates[role].append(base * factor if base > 0 else -1.0)
        return rates

    def _bind_leaves(self, group: slice) -> None:
        """Point the hooks at a group of rows, as leaves whose gradients land in one buffer."""
        key = (group.start, group.stop)
        if key not in self._leaves:
            self._leaves[key] = {
                name: self.layout.view(self.rows[group], name).detach().requires_grad_()
                for name in self.layout.segments
            }
            for name, leaf in self._leaves[key].items():
                leaf.grad = self.layout.view(self._grad[group], name)
        self._pass.bound = self._leaves[key]
        self._set_slots(self.slots[group])

    def _bind(self, rows: Tensor, slots: list[Slot]) -> None:
        self._pass.bound = {name: self.layout.view(rows, name) for name in self.layout.segments}
        self._set_slots(slots)

    def _set_slots(self, slots: list[Slot]) -> None:
        self._pass.scale = self.rows.new_tensor([scaling(self.kind, self.alpha, slot.config.rank) for slot in slots])
        self._pass.used = {role for slot in slots for role in slot.config.roles}

    def _attach(self) -> list[Any]:
        modules = dict(self.backbone.model.named_modules())
        handles = []
        sites = tuple(site for site in self.backbone.projections.sites if site.role in self.layout.roles)
        for name, group in by_module(sites).items():
            handles.append(modules[name].register_forward_hook(self._adapter(group)))
        owners = dict.fromkeys(name.rpartition(".")[0] for name in self.backbone.head_parameters())
        for owner in owners:
            handles.append(modules[owner].register_forward_hook(self._head(owner, modules[owner])))
        return handles

    def _adapter(self, sites: tuple[Site, ...]) -> Callable[..., Tensor | None]:
        name_a, name_b = f"{sites[0].name}.lora_A", f"{sites[0].name}.lora_B"

        def add(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            now = self._pass
            used = [site for site in sites if site.role in now.used]
            if not used:
                return None
            if sites[0].rows:
                a, b = stack(used, now.bound)
            else:
                a, b = now.bound[name_a], now.bound[name_b]
            if a.shape[0] > 1 and args[0].shape[0] % now.batch:
                raise ModelError(
                    f"model {self.backbone.source!r}: {sites[0].module} reads {args[0].shape[0]} rows where "
                    f"the batch has {now.batch}, so slots cannot share a pass; set together=1"
                )
            # [slots, rank, d_in] and [slots, d_out, rank], rounded to the activations' type as autocast does
            a, b = a.to(output.dtype), b.to(output.dtype)
            x = args[0].reshape(a.shape[0], -1, a.shape[2])  # [slots, batch * tokens, d_in]
            low = torch.bmm(x, a.transpose(1, 2)) * now.scale.view(-1, 1, 1).to(output.dtype)
            term = torch.bmm(low, b.transpose(1, 2)).view(output.shape)
            if self.kind != "dora":
                return output + term
            return self._dora(_module, sites[0], output, term)

        return add

    def _dora(self, module: nn.Module, site: Site, output: Tensor, term: Tensor) -> Tensor:
        """Give the rows of W + s B A their learned lengths (Liu et al., "DoRA", 2024, equation 5, as PEFT has it)."""
        now = self._pass
        a, b = now.bound[f"{site.name}.lora_A"], now.bound[f"{site.name}.lora_B"]
        with torch.no_grad():  # the lengths of W + s B A count as constants
            weight, own = self._frozen[site.name], self._magnitudes[f"{site.name}.lora_magnitude_vector"].to(b.dtype)
            scale = now.scale.view(-1, 1)
            wa = torch.matmul(weight, a.transpose(1, 2).to(weight.dtype)).to(b.dtype)  # [slots, d_out, rank]
            of_b = torch.bmm(b, torch.bmm(a, a.transpose(1, 2)))
            squares = own.square() + 2 * scale * (wa * b).sum(2) + scale**2 * (of_b * b).sum(2)
            lengths = squares.clamp_min(0.0).sqrt()
        factor = now.bound[f"{site.name}.lora_magnitude_vector"] / lengths  # [slots, d_out]
        factor = factor.repeat_interleave(output.shape[0] // factor.shape[0], 0).to(output.dtype)
        factor = factor.view(output.shape[0], *[1] * (output.dim() - 2), -1)
        bias = getattr(module, "bias", None)
        grown: Tensor = factor * (output + term) if bias is None else factor * (output - bias + term) + bias
        return grown

    def _head(self, owner: str, module: nn.Module) -> Callable[..., Tensor]:
        names = [name for name, _ in module.named_parameters(recurse=False)]
        # The hook runs inside the module's own call, so per-slot calls go to a copy without hooks.
        original = deepcopy(module)

        def replace(_module: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> Tensor:
            own = {name: self._pass.bound[f"{owner}.{name}"] for name in names}
            slots = next(iter(own.values())).shape[0]
            x = args[0].reshape(slots, -1, *args[0].shape[1:]).to(self.rows.dtype)
            if isinstance(module, nn.Linear):
                flat = x.reshape(slots, -1, module.in_features)
                out = torch.bmm(flat, own["weight"].transpose(1, 2))
                if "bias" in own:
                    out = out + own["bias"].unsqueeze(1)
                return out.view(*args[0].shape[:-1], module.out_features)
            if owner not in self._pass.twins:
                self._pass.twins[owner] = deepcopy(original)
            twin = self._pass.twins[owner]
            parts = [functional_call(twin, {n: t[i] for n, t in own.items()}, (x[i],)) for i in range(slots)]
            return torch.cat(parts)

        return replace
