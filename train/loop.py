"""The training loop, on Lightning Fabric: any device, mixed precision, several GPUs, resumable after a kill."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from runtime.errors import InputError, VertscanError
from train import config as configuration
from train.balance import balancer_of
from train.config import LoopConfig, Run
from train.processor import processor_has_bf16
from train.run_differences import differences, differences_in_images, differences_in_validation
from train.sources import Source, held_out
from train.tasks import Batch, Task, task_of, to_device
from train.weights import fitting, weights_to_start_from

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 60.0
_VALIDATION_STREAM = 1


class Batches(Dataset[Batch]):
    """Batch number i, made from the seed, the rank and i alone: a resumed run sees what an unbroken one would."""

    def __init__(self, task: Task, source: Source, *, size: int, seed: int, rank: int) -> None:
        self.task, self.source, self.size, self.seed, self.rank = task, source, size, seed, rank

    def __getitem__(self, index: int) -> Batch:
        """The batch of optimiser step ``index``."""
        return self.task.batch(self.source, (self.seed, 0, self.rank, index), self.size)


def _use_one_thread(_: int) -> None:
    """Of a worker process: the network has the other threads."""
    torch.set_num_threads(1)


def learning_rate(loop: LoopConfig, step: int) -> float:
    """Learning rate of optimiser step ``step`` (from 0)."""
    if loop.schedule == "constant":
        return loop.learning_rate
    if loop.schedule == "step":
        return float(loop.learning_rate * 0.1 ** (step // loop.decay_every))
    if step < loop.warmup:
        return loop.learning_rate * (step + 1) / loop.warmup
    progress = (step - loop.warmup) / max(loop.steps - loop.warmup, 1)
    return loop.learning_rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def make_optimiser(loop: LoopConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Adam, or AdamW with decay on weights only (not on norms and biases)."""
    if loop.optimiser == "adam":
        return torch.optim.Adam(network.parameters(), lr=loop.learning_rate)
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": loop.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=loop.learning_rate)


def usable_precision(wanted: str, accelerator: str) -> str:
    """``wanted``, or ``"32-true"`` where it is bf16 on a processor that it is only emulated for.

    The emulation is correct and takes from twice to over a hundred times as long, by the processor.
    """
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    if on_cpu and wanted.startswith("bf16") and not processor_has_bf16():
        log.warning("this processor does not compute in bf16; training in fp32 instead")
        return "32-true"
    return wanted


def _fabric(accelerator: str, devices: int | str, precision: str, logger: Any) -> Fabric:
    """Raises InputError where Fabric refuses: a device that is not there, a precision that it doesn't know."""
    try:
        return Fabric(
            accelerator=accelerator, devices=devices, precision=precision, loggers=logger  # type: ignore[arg-type]
        )  # fmt: skip
    except (RuntimeError, ValueError, MisconfigurationException) as error:
        raise InputError(
            f"Training on {devices} devices of the kind {accelerator} with loop.precision={precision} is not possible "
            f"here ({error}); name others with --accelerator, --devices and --set loop.precision=32-true."
        ) from error


def _without_workers_trace(error: VertscanError) -> VertscanError:
    """An error as it was raised: one that comes from a worker process holds that process's trace as text."""
    kind = type(error)
    return kind(str(error).rsplit(f"{kind.__module__}.{kind.__qualname__}: ", 1)[-1].strip())


class Trainer:
    """One training run in one folder: ``config.json``, ``last.ckpt``, ``best.ckpt`` and TensorBoard's events."""

    def __init__(
        self, run: Run, source: Source, folder: Path, *, accelerator: str = "auto", devices: int | str = 1
    ) -> None:
        from lightning.fabric.loggers import TensorBoardLogger

        self.run, self.loop, self.source, self.folder = run, run.loop, source, folder
        self.held_out = held_out(source)
        self.task: Task = task_of(run)
        folder.mkdir(parents=True, exist_ok=True)
        self.logger = TensorBoardLogger(folder, name="", version="curves")
        precision = usable_precision(run.loop.precision, accelerator)
        self.fabric = _fabric(accelerator, devices, precision, self.logger)
        self.fabric.launch()
        self.balancer = balancer_of(run, devices=self.fabric.world_size)
        self.fabric.seed_everything(run.loop.seed, verbose=False)
        plain = self.task.network()
        self.network, self.optimiser = self.fabric.setup(plain, make_optimiser(run.loop, plain))
        self.average = self._make_average()
        self.step, self.best, self.since_best = 0, -math.inf, 0
        self.best_metrics: dict[str, float] = {}
        self._resume_or_start()

    @property
    def _on_cuda(self) -> bool:
        return self.fabric.device.type == "cuda"

    def _make_average(self) -> AveragedModel | None:
        decay = self.loop.ema
        if not decay:
            return None

        def lerp(average: torch.Tensor, value: torch.Tensor, count: torch.Tensor | int) -> torch.Tensor:
            return torch.lerp(average, value, 1 - min(decay, (1 + int(count)) / (10 + int(count))))

        return AveragedModel(self.network.module, avg_fn=lerp)

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and exported: the moving average where there is one."""
        return self.average.module if self.average is not None else self.network.module

    def _resume_or_start(self) -> None:
        config_path, last = self.folder / "config.json", self.folder / "last.ckpt"
        resumed = last.exists()
        earlier = configuration.load(config_path) if resumed and config_path.exists() else self.run
        if resumed:
            self._refuse_other_images(earlier)
            self._resume(torch.load(last, map_location="cpu", weights_only=True))
            self._begin_anew_with_other_validation(earlier)
        elif self.loop.start_from:
            self._start_from(Path(self.loop.start_from))
        self.fabric.barrier()  # until all processes have read the earlier settings
        if self.fabric.is_global_zero:
            self._keep_earlier(earlier, config_path)
            configuration.save(self.run, config_path)

    def _refuse_other_images(self, earlier: Run) -> None:
        """Raises InputError where the run saw other images until now: its best weights belong to those."""
        if differ := differences_in_images(earlier, self.run):
            told = ", ".join(f"{n} from {getattr(earlier, n, None)} to {getattr(self.run, n, None)}" for n in differ)
            raise InputError(
                f"The images that the run in {self.folder} learns from can't be changed on the way ({told}); begin "
                "another with -o, from these weights with --start-from."
            )

    def _resume(self, state: dict[str, Any]) -> None:
        """Go on with what ``_save`` kept. Raises InputError where network, optimiser or average don't fit it."""
        if self.average is not None and state["average"] is None:
            raise InputError(
                f"The run in {self.folder} has no moving average of its weights and can't begin one on the way; "
                "resume it with --set loop.ema=0."
            )
        decays = [group["weight_decay"] for group in self.optimiser.param_groups]
        try:
            self.network.module.load_state_dict(state["network"])
            self.optimiser.load_state_dict(state["optimiser"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"{self.folder / 'last.ckpt'} is of another network or optimiser ({error}); resume the run with its "
                "own, or name another folder with -o."
            ) from error
        for group, decay in zip(self.optimiser.param_groups, decays, strict=True):
            group["weight_decay"] = decay  # as the settings say: the checkpoint has brought back the earlier one
        self.step, self.best, self.since_best = state["step"], state["best"], state["since_best"]
        self.best_metrics = state["best_metrics"]
        self.balancer.load_state_dict(state.get("balancer", {}))  # runs of earlier versions have none
        torch.set_rng_state(state["rng"])
        if self._on_cuda and state.get("cuda_rng") is not None:
            torch.cuda.set_rng_state(state["cuda_rng"], self.fabric.device)
        log.info("resuming %s at step %d of %d", self.folder, self.step, self.loop.steps)

    def _begin_anew_with_other_validation(self, earlier: Run) -> None:
        """Forget the best score where the samples that validate are others: it says nothing about these."""
        if differ := differences_in_validation(earlier, self.run):
            self.best, self.since_best = -math.inf, 0
            log.warning(
                "the validation samples are others (%s): the next validation's weights replace best.ckpt, whatever its "
                "score", ", ".join(differ),
            )  # fmt: skip

    def _keep_earlier(self, earlier: Run, config_path: Path) -> None:
        """Say which settings are others than the run had until now, and keep those as ``config.before-step-N.json``."""
        changes = differences(earlier, self.run)
        if not changes:
            return
        kept = config_path.with_name(f"config.before-step-{self.step}.json")
        if not kept.exists():  # else no step was made since it was written: those before it had its settings
            kept.write_bytes(config_path.read_bytes())
        log.warning(
            "from step %d on other settings: %s; the earlier ones are in %s", self.step, "; ".join(changes), kept
        )

    def _start_from(self, source: Path) -> None:
        """Begin with the best weights of another run, or with those of a bundle."""
        wanted = self.network.module.state_dict()
        weights = fitting(weights_to_start_from(source, self.task.name), wanted, source=str(source))
        self.network.module.load_state_dict(weights)
        if self.average is not None:
            self.average.module.load_state_dict(weights)
        log.info("starting from the weights of %s", source)

    def _save(self) -> None:
        if not self.fabric.is_global_zero:
            return
        state = {
            "network": self.network.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "step": self.step, "best": self.best, "since_best": self.since_best, "best_metrics": self.best_metrics,
            "rng": torch.get_rng_state(), "balancer": self.balancer.state_dict(),
            "cuda_rng": torch.cuda.get_rng_state(self.fabric.device) if self._on_cuda else None,
        }  # fmt: skip
        save_atomically(state, self.folder / "last.ckpt")

    def _save_best(self) -> None:
        if self.fabric.is_global_zero:
            state = {"network": self.evaluated.state_dict(), "step": self.step, "metrics": self.best_metrics}
            save_atomically(state, self.folder / "best.ckpt")

    def fit(self, *, progress: bool = True) -> dict[str, float]:
        """Train to the end, from wherever the folder's last checkpoint is. Returns the best validation's figures."""
        if self._out_of_patience():
            return self.best_metrics
        bar = tqdm(total=self.loop.steps, initial=self.step, disable=not progress, desc=self.task.name, unit="step")
        last_saved = time.monotonic()
        for batch in self._batches():
            parts = self._optimise(batch)
            self.step += 1
            bar.update()
            is_last = self.step == self.loop.steps
            validates = self.step % self.loop.validate_every == 0 or is_last
            saves = time.monotonic() - last_saved > CHECKPOINT_SECONDS or is_last
            if self.fabric.world_size > 1 and self.step % 10 and not validates:
                saves = False  # not yet: all processes judge at the same steps, and each has its own clock
            if self.step % 10 == 0 or validates or saves:
                self._refuse_what_is_no_number(parts["loss"], weights=validates or saves)
            if self.step % 10 == 0:
                values = {f"train/{k}": float(v) for k, v in parts.items()}
                values |= {f"train/weight_{task}": weight for task, weight in self.balancer.weights().items()}
                self.fabric.log_dict(values, step=self.step)
                bar.set_postfix({k.split("/")[1]: f"{v:.3f}" for k, v in values.items()})
            if validates:
                self._validate(bar)
            if saves:
                self._save()
                last_saved = time.monotonic()
            if self._out_of_patience():
                break
        self._save()
        bar.close()
        return self.best_metrics

    def _refuse_what_is_no_number(self, loss: torch.Tensor, *, weights: bool) -> None:
        """Raises InputError where the loss, or a weight where those are about to be kept, is nan or infinite.

        In all processes where it is so in one: the others would wait for it forever.
        """
        is_finite = bool(loss.isfinite())
        if is_finite and weights:
            is_finite = all(bool(weight.isfinite().all()) for weight in self.network.module.parameters())
        failures: Any = self.fabric.all_reduce(
            torch.tensor(float(not is_finite), device=self.fabric.device), reduce_op="sum"
        )
        if failures:
            raise InputError(
                f"The training diverged: at step {self.step}, with a learning rate of "
                f"{learning_rate(self.loop, self.step - 1):g}, the loss is {float(loss):g} and the weights are no "
                "numbers any more, or about to be. The last checkpoint is from before; go on with a lower rate, such "
                f"as --set loop.learning_rate={self.loop.learning_rate / 10:g}, or with --set loop.clip_norm=1."
            )

    def _out_of_patience(self) -> bool:
        """Whether the validations without a better score are as many as the run waits for; said in the log."""
        if not self.loop.patience or self.since_best < self.loop.patience:
            return False
        log.info("no better score for %d validations: stopped at step %d", self.since_best, self.step)
        return True

    def _batches(self) -> Iterator[Batch]:
        data = Batches(
            self.task, self.source, size=self.loop.batch, seed=self.loop.seed, rank=self.fabric.global_rank
        )  # fmt: skip
        steps = range(self.step, self.loop.steps)
        loader: Any = DataLoader(
            data,
            batch_size=None,
            sampler=steps,
            num_workers=self.loop.workers,
            worker_init_fn=_use_one_thread,
            multiprocessing_context="spawn" if self.loop.workers else None,
            generator=torch.Generator(),  # its own: the global one is dropout's, which a resumed run goes on with
        )
        try:
            for batch in loader:
                yield to_device(batch, self.fabric.device)
        except VertscanError as error:
            raise _without_workers_trace(error) from error

    def _optimise(self, batch: Batch) -> dict[str, torch.Tensor]:
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.loop, self.step)
        self.network.train()
        parts = self.task.losses(self.network, batch)
        parts["loss"] = self.balancer.total(self.network.module, parts)
        self.fabric.backward(parts["loss"])
        if self.loop.clip_norm:
            self.fabric.clip_gradients(  # what isn't finite is 16-mixed's scaler's to skip, else fit's to refuse
                self.network, self.optimiser, max_norm=self.loop.clip_norm, error_if_nonfinite=False
            )
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.network.module)
        return {name: value.detach() for name, value in parts.items()}

    def _validate(self, bar: Any) -> None:
        size = self.loop.batch
        with evaluating(self.evaluated), torch.inference_mode(), self.fabric.autocast():
            batches = (
                to_device(
                    self.task.batch(self.held_out, (self.loop.seed, _VALIDATION_STREAM, i), size), self.fabric.device
                )
                for i in range(max(self.loop.validation_samples // size, 1))
            )
            measured = self.task.metrics(self.evaluated, batches)
        # What the samples don't know (VerSe has neither bodies nor heights) is nan, which no JSON can hold.
        metrics = {name: value for name, value in measured.items() if name == "score" or math.isfinite(value)}
        self.fabric.log_dict({f"validation/{k}": v for k, v in metrics.items()}, step=self.step)
        bar.write(f"{self.task.name} step {self.step}: " + ", ".join(f"{k} {v:.4f}" for k, v in metrics.items()))
        if not math.isfinite(metrics["score"]):
            raise InputError("The validation samples know neither grades nor masks, so no weights can be called best.")
        if self.step < self.loop.checkpoint_from:
            return
        self.since_best += 1
        if metrics["score"] > self.best:
            self.best, self.since_best, self.best_metrics = metrics["score"], 0, metrics
            self._save_best()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, whatever it was before after it."""
    was = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was)


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """``torch.save`` that never leaves a half-written file under the final name."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    torch.save(state, temporary)
    temporary.replace(path)
