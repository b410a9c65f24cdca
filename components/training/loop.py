"""The training loop, one for every family, on one process or many.

    for each step: for each active phase: freeze the rest -> loss (DDP) -> backward -> clip -> optimizer step -> after_step
                   average the weights -> record, evaluate, checkpoint when due

Each phase is a small module that registers only what the phase trains and whose forward is the family's loss; DistributedDataParallel (Li
et al. 2020, arXiv 2006.15704) wraps that, so there are no unused parameters and no buffer broadcasts. A step's rows, order and random
numbers are computed from its number, so a run that was stopped goes on with the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from components.data.dataset import Dataset
from components.data.loader import Loader
from components.errors import Diverged, UserError
from components.evaluation.scoring import Scores, evaluate
from components.families.contract import Batch, Family, Phase, PhaseOutput, replicated
from components.training.checkpoint import Checkpoint, CheckpointFolder, State
from components.training.communication import rows_of
from components.training.config import TrainConfig
from components.training.context import Context
from components.training.measures import Measures
from components.training.optimization import (
    WeightAverage,
    learning_rate_factor,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
    touched_rows,
)
from components.training.outlet import Outlet
from components.training.randomness import LANE, Draws
from components.training.recompute import recompute
from components.training.row_files import Rows, RowSlice


class PhaseModule(nn.Module):
    """What DDP wraps: the children one phase trains, and the family's loss as forward."""

    def __init__(self, family: Family, phase: Phase, precision: str) -> None:
        super().__init__()
        self._family = (family,)  # in a tuple, so that the children of other phases are not registered here
        self.phase = phase
        self._autocast = precision == "bfloat16"
        for number, name in enumerate(name for name in phase.trains if name not in family.sharded):
            self.add_module(f"child{number}", family.get_submodule(name))

    def forward(self, batch: Batch, ctx: Context) -> PhaseOutput:
        with torch.autocast(ctx.random.device.type, torch.bfloat16, enabled=self._autocast):
            return self._family[0].loss(self.phase.name, batch, ctx)


class Turn:
    """One phase with its wrapped module, its optimizer and the names of its parameters."""

    def __init__(self, family: Family, phase: Phase, config: TrainConfig, distributed: bool) -> None:
        self.phase = phase
        self.settings = phase.optimizer or config.optimizer
        self.parameters = {
            f"{child}.{name}": parameter for child in phase.trains for name, parameter in family.get_submodule(child).named_parameters()
        }
        self.sharded = {name for name in self.parameters if name.split(".")[0] in family.sharded}
        self.optimizer = make_optimizer(self.parameters, self.settings)
        module = PhaseModule(family, phase, config.precision)
        self.module: nn.Module = module
        if distributed:
            self.module = DistributedDataParallel(module, forward_sync_buffers=False, gradient_as_bucket_view=True)


class Trainer:
    """The state of one run on one worker: the family, a turn for each phase, the averages and the step that comes next."""

    def __init__(self, family: Family, config: TrainConfig, outlet: Outlet) -> None:
        self.family, self.config, self.outlet = family.to(outlet.device), config, outlet
        self.world = outlet.world
        if config.recompute:
            recompute(family, family.recomputed, config.recompute)
        for name in family.sharded:
            family.get_submodule(name).cut(self.world.rank, self.world.size, config.seed)  # type: ignore[operator]
        self._broadcast()
        self.turns = [Turn(family, phase, config, self.world.size > 1) for phase in family.phases]
        self.average = self._fresh_average()
        self.step = 0
        self._free: Turn | None = None  # the phase whose parameters take gradients now

    @torch.no_grad()
    def begin(self, data: Dataset) -> None:
        """The family's initialisation from data: the same rows, the first of the run, on any number of workers."""
        count, batch_size = self.family.surveyed_rows, self.config.batch_size
        if not count:
            return
        batches = list(Loader(data, batch_size, self.config.seed).batches(0, -(-count // batch_size)))
        rows = {name: torch.cat([batch[name] for batch in batches])[:count] for name in batches[0]}
        self.family.begin(_on_device(rows, self.outlet.device))
        self._broadcast()  # kernels may differ in the last bit between machines
        self.average = self._fresh_average()

    def train_step(self, batch: Batch, measures: Measures) -> None:
        """One optimizer step of every active phase on this worker's rows of the global batch."""
        for turn in self.turns:
            if turn.phase.active(self.step):
                self._run(turn, batch, measures)
        if self.average:
            self.average.update(self.step)
        self.step += 1

    def _broadcast(self) -> None:
        for tensor in replicated(self.family).values():
            self.world.broadcast(tensor)

    def _fresh_average(self) -> WeightAverage | None:
        return WeightAverage(self.family, self.config.ema_decay) if self.config.ema_decay else None

    def _run(self, turn: Turn, batch: Batch, measures: Measures) -> None:
        self._free_only(turn)
        turn.optimizer.zero_grad(set_to_none=True)
        stats: dict[str, Tensor] = {}
        micro_batches = list(self._micro_batches(turn.phase, batch))
        for number, (part, ctx) in enumerate(micro_batches):
            share = ctx.rows / ctx.global_rows
            reduce_now = self.world.size == 1 or number == len(micro_batches) - 1
            with nullcontext() if reduce_now else turn.module.no_sync():  # type: ignore[operator]
                with measures.count_flops(turn.phase.name):
                    output: PhaseOutput = turn.module(part, ctx)
                # DDP divides the sum of gradients by the number of workers: this makes it the mean over the global batch.
                weight = share * self.world.size if output.gathered_rows is None else output.gathered_rows / ctx.global_rows
                (output.loss * weight).backward()
            for name, value in output.stats.items():
                stats[name] = stats[name] + value if name in stats else value
            measures.add(self.step + 1, output.metrics | {f"loss.{turn.phase.name}": output.loss.detach()}, share)
        self._update(turn, measures)
        ctx = self._context(turn.phase, slice(0, self.config.batch_size), (self.config.batch_size,) * self.world.size)
        with torch.no_grad():
            self.family.after_step(turn.phase.name, self._summed(stats), ctx)

    def _update(self, turn: Turn, measures: Measures) -> None:
        norm = self._clip(turn)
        lr = turn.settings.lr * learning_rate_factor(self.step, self.config)
        for group in turn.optimizer.param_groups:
            group["lr"] = lr
        with touched_rows(turn.optimizer):
            turn.optimizer.step()
        measures.see(self.step + 1, turn.phase.name, norm, lr)

    def _clip(self, turn: Turn) -> Tensor:
        """The norm of the whole gradient, equal on every worker; clips to `clip_norm`."""
        whole: list[nn.Parameter] = []
        cut: list[nn.Parameter] = []
        for name, parameter in turn.parameters.items():
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
            if parameter.grad is not None:
                (cut if name in turn.sharded else whole).append(parameter)
        norm = nn.utils.get_total_norm([p.grad for p in whole if p.grad is not None])  # of averaged gradients: equal everywhere
        slices = [p.grad.values() if p.grad.is_sparse else p.grad for p in cut if p.grad is not None]
        if turn.sharded:
            squares = self.world.sum(torch.stack([part.square().sum() for part in slices]).sum() if slices else norm.new_zeros(()))
            norm = (norm.square() + squares).sqrt()
        if self.config.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(whole, self.config.clip_norm, norm)
            for part in slices:
                part.mul_((self.config.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def _micro_batches(self, phase: Phase, batch: Batch) -> Iterator[tuple[Batch, Context]]:
        """This worker's rows in `accumulate` parts, each with what the loss may know of it."""
        config, world = self.config, self.world
        workers = [rows_of(rank, world.size, config.batch_size, LANE) for rank in range(world.size)]
        first = workers[world.rank].start
        for number in range(config.accumulate):
            parts = [rows_of(number, config.accumulate, rows.stop - rows.start, LANE) for rows in workers]
            part = parts[world.rank]
            counts = tuple(each.stop - each.start for each in parts)
            ctx = self._context(phase, slice(first + part.start, first + part.stop), counts)
            yield {name: column[part] for name, column in batch.items()}, ctx

    def _context(self, phase: Phase, rows: slice, rows_by_worker: tuple[int, ...]) -> Context:
        draws = Draws(self.config.seed, self.step, phase.name, rows.start, self.outlet.device)
        return Context(self.step, phase.name, draws, rows.stop - rows.start, self.config.batch_size, self.world, rows_by_worker)

    def _free_only(self, turn: Turn) -> None:
        if self._free is turn:
            return
        self.family.requires_grad_(False)
        for parameter in turn.parameters.values():
            parameter.requires_grad_(True)
        self._free = turn

    def _summed(self, stats: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.world.size == 1 or not stats:
            return stats
        total = self.world.sum(torch.cat([value.flatten() for value in stats.values()]))  # one collective for all
        parts = total.split([value.numel() for value in stats.values()])
        return {name: part.view_as(value) for (name, value), part in zip(stats.items(), parts, strict=True)}

    def evaluate(self, held_out: Dataset, limit: int | None) -> Scores:
        """Scores on held-out rows, with averaged weights where there are any."""
        with self.average.in_place() if self.average else nullcontext():
            return evaluate(self.family, held_out, self.world, limit=limit)

    def state(self) -> State:
        """All that resuming needs besides the step, by file; of sharded children what belongs to no row."""
        parts: State = {"model": replicated(self.family), "optimizer": {}}
        for turn in self.turns:
            tensors = {name: value for name, value in self._optimizer_state(turn).items() if not _in_rows(name, value, turn)}
            parts["optimizer"] |= {f"{turn.phase.name}/{name}": value for name, value in tensors.items()}
        if self.average:
            parts["average"] = self.average.average
        return parts

    def rows(self) -> Rows:
        """This worker's rows of the sharded children: their weights and what optimizers keep of each row."""
        rows: Rows = {}
        for child in self.family.sharded:
            module = self.family.get_submodule(child)
            tensors = {f"model/{name}": value for name, value in module.state_dict().items()}
            for turn in self.turns:
                for name, value in self._optimizer_state(turn).items():
                    if name.startswith(f"{child}.") and _in_rows(name, value, turn):
                        tensors[f"optimizer/{turn.phase.name}/{name.removeprefix(f'{child}.')}"] = value
            rows[child] = RowSlice(*self.spans[child], tensors)
        return rows

    def restore(self, checkpoint: Checkpoint) -> None:
        """The inverse of `state` and `rows`, for any number of workers."""
        weights = {
            f"{child}.{name.removeprefix('model/')}": value
            for child, part in checkpoint.rows.items()
            for name, value in part.tensors.items()
            if name.startswith("model/")
        }
        self.family.load_state_dict(checkpoint.state["model"] | weights)
        for turn in self.turns:
            prefix = f"{turn.phase.name}/"
            mine = {k.removeprefix(prefix): v for k, v in checkpoint.state["optimizer"].items() if k.startswith(prefix)}
            for child, part in checkpoint.rows.items():
                before = f"optimizer/{prefix}"
                mine |= {f"{child}.{k.removeprefix(before)}": v for k, v in part.tensors.items() if k.startswith(before)}
            restore_optimizer(turn.parameters, turn.optimizer, mine)
        if self.average:
            for name, value in checkpoint.state["average"].items():
                self.average.average[name].copy_(value)
        self.step = checkpoint.step

    @property
    def spans(self) -> dict[str, tuple[int, int]]:
        """The rows of each sharded child that this worker owns."""
        return {child: self.family.get_submodule(child).span for child in self.family.sharded}  # type: ignore[misc]

    def _optimizer_state(self, turn: Turn) -> dict[str, Tensor]:
        return optimizer_tensors(turn.parameters, turn.optimizer)


def _in_rows(name: str, value: Tensor, turn: Turn) -> bool:
    """Whether a slot of optimizer state, `parameter/slot`, is cut by rows: that of a sharded parameter, but not the count of steps."""
    return name.rpartition("/")[0] in turn.sharded and value.dim() > 0


def train(
    trainer: Trainer, data: Dataset, held_out: Dataset | None, checkpoints: CheckpointFolder, family_name: str, until: int | None = None
) -> None:
    """Trains from the trainer's step to the end of its config, or `until` a step before; every checkpoint is on storage when it returns.

    Where the outlet asks for a rest it stops earlier, at a step that has a row, and leaves a checkpoint of that step.
    Raises Diverged, on every worker, when a loss, a metric or a gradient stops being finite; checkpoints hold finite states only.
    """
    config, outlet, world = trainer.config, trainer.outlet, trainer.world
    end = config.steps if until is None else until
    family = trainer.family.train()
    loader = Loader(data, config.batch_size, config.seed, world.rank, world.size)
    if trainer.step == 0:
        trainer.begin(data)
    measures = Measures(outlet.device, world, config.batch_size)
    for batch in loader.batches(trainer.step, end):
        trainer.train_step(_on_device(batch, outlet.device), measures)
        step, last = trainer.step, trainer.step == end
        due = _due(config, step, last)
        if not any(due.values()):
            continue
        resting = not last and outlet.rests()  # at rows, where workers wait for each other anyway
        due["checkpoint"] |= resting
        try:
            row = measures.read(step, loader.seconds_waited)
        except Diverged as error:
            raise Diverged(f"{error}; {_last_good(checkpoints, outlet)}") from None
        scores = trainer.evaluate(held_out, config.evaluate_rows) if due["evaluate"] and held_out is not None else {}
        if due["checkpoint"] and (world.rank == 0 or family.sharded):
            score = scores.get(family.headline[0])
            checkpoints.save(step, family_name, trainer.state(), score if isinstance(score, float) else None, trainer.rows())
        numbers = {f"held_out.{name}": value for name, value in scores.items() if isinstance(value, float)}
        outlet.report(row | numbers, flush=due["checkpoint"])
        if resting:
            break
        measures.restart()
    checkpoints.wait()


def _last_good(checkpoints: CheckpointFolder, outlet: Outlet) -> str:
    """Where a run that went wrong could go on from, the same words on every worker."""
    checkpoints.wait()
    saved = checkpoints.steps() if outlet.world.rank == 0 else []  # the others do not know what rank 0 has completed
    last = torch.tensor(saved[-1] if saved else -1, device=outlet.device)
    outlet.world.broadcast(last)
    step = int(last)
    if step < 0:
        return "there is no checkpoint of the steps before it"
    return f"the last good checkpoint, of step {step}, is {checkpoints.place(step)}"


def _due(config: TrainConfig, step: int, last: bool) -> dict[str, bool]:
    return {
        "log": last or step % config.log_every == 0,
        "checkpoint": last or step % config.checkpoint_every == 0,
        "evaluate": config.evaluate_every > 0 and step % config.evaluate_every == 0,
    }


def _on_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: column.to(device, non_blocking=True) for name, column in batch.items()}


def check_fits(config: TrainConfig, world_size: int) -> None:
    """Raises UserError when the global batch cannot be cut for so many workers and micro-batches."""
    lanes = -(-config.batch_size // LANE)
    if lanes < world_size * config.accumulate:
        raise UserError(
            f"train.batch_size={config.batch_size} has {lanes} groups of {LANE} rows, too few for {world_size} workers x "
            f"accumulate={config.accumulate}; raise batch_size to at least {LANE * world_size * config.accumulate}"
        )
