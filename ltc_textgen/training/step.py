"""One optimizer step: truncated backpropagation through the next window of every batch row."""

import math
from contextlib import nullcontext

import torch

from ltc_textgen.model.state import LiquidState
from ltc_textgen.shapes import Bool, Float, Int, Tensor
from ltc_textgen.training import checkpoint, nonfinite
from ltc_textgen.training.monitor import rate_scale
from ltc_textgen.training.optimizer import rate_factor
from ltc_textgen.training.session import Session, Watch


def train_step(session: Session, watch: Watch) -> str | None:
    """Make a step and record it in `session.progress`.

    A step whose loss or gradient is not finite in any process changes no weight in any of them; their states are
    reset afterwards, since the state may be broken too.

    Returns:
        Name of the signal that some process has received, None without one.

    Raises:
        NonFiniteError: If too many steps in a row were not finite.
    """
    config, progress, accelerator = session.run.train, session.progress, session.runtime.accelerator
    _set_learning_rate(session)
    inputs, targets, reset = (tensor.to(session.runtime.device) for tensor in session.batches.window(progress.step))
    reset = _restarted(reset, config.state_reset_prob)
    before = start_state(session, reset)
    generators = checkpoint.torch_random_states(session.runtime.device) if nonfinite.is_last_chance(progress) else {}
    session.optimizer.zero_grad(set_to_none=True)
    loss_now, after = _forward_backward(session, inputs, targets, before, reset)
    accelerator.unscale_gradients(session.optimizer)
    norm = clip_gradients([p for group in session.adam.param_groups for p in group["params"]], config.max_grad_norm)
    loss, length = torch.stack([loss_now.float(), norm.float()]).tolist()

    finite = math.isfinite(loss) and math.isfinite(length)
    broken, loss, signal_name = watch.share(session, finite, loss)
    nonfinite.count(progress, broken)
    if not broken or accelerator.scaler is not None:  # the scaler itself leaves out such a step, and scales less
        session.optimizer.step()
    session.state = None if broken else after
    progress.step += 1
    progress.tokens += targets.numel() * session.runtime.world
    if not broken:
        progress.add_loss(loss)
        return signal_name
    session.reporter.note(f"step {progress.step} skipped: the loss or its gradient is not finite")
    if progress.skipped_in_a_row >= nonfinite.LIMIT:
        directory = session.out / nonfinite.DUMP / f"process-{session.runtime.rank}"
        dumped = nonfinite.dump(directory, session.model, inputs, targets, before, generators, progress.step)
        raise nonfinite.too_many(session.out, progress, dumped)
    return signal_name


def try_step(session: Session) -> None:
    """Do the work of the next step and drop its gradients: weights, states and random numbers stay as they are."""
    device = session.runtime.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        inputs, targets, reset = (tensor.to(device) for tensor in session.batches.window(session.progress.step))
        loss, _ = _forward_backward(session, inputs, targets, start_state(session, reset), reset)
        float(loss)  # waits for the device
    session.optimizer.zero_grad(set_to_none=True)


def _restarted(reset: Bool[Tensor, " B"], prob: float) -> Bool[Tensor, " B"]:
    """`reset`, and each other row with probability `prob`, drawn for every window."""
    return reset | (torch.rand(reset.shape) < prob).to(reset.device) if prob else reset


def start_state(session: Session, reset: Bool[Tensor, " B"], rows: Int[Tensor, " _"] | None = None) -> LiquidState:
    """The state before the next window: the carried one, or the initial one in rows that are reset.

    A learned initial state takes part even if no row is reset, with a gradient of zero: several processes have to
    agree on the parameters that have a gradient.

    Args:
        session: The run.
        reset: Rows whose state is reset.
        rows: Rows that are wanted; all if None.
    """
    carried = session.state
    if rows is not None:
        reset, carried = reset[rows], None if carried is None else carried.select(rows)
    if carried is not None and not session.model.settings.learned_initial_state and not bool(reset.any()):
        return carried
    fresh = session.model.initial_state(len(reset))
    if carried is None:
        return fresh
    rest = fresh.tensors()
    mixed = {
        name: torch.where(reset.view(-1, *[1] * (tensor.ndim - 1)), rest[name].to(tensor.dtype), tensor)
        for name, tensor in carried.tensors().items()
    }
    return LiquidState.from_tensors(mixed)


def _set_learning_rate(session: Session) -> None:
    config = session.run.train
    factor = rate_factor(session.budget.done(session.progress), config.warmup_ratio, config.min_learning_rate_ratio)
    factor *= rate_scale(session.progress, config.learning_rate)
    session.progress.learning_rate = config.learning_rate * factor
    for group in session.adam.param_groups:
        group["lr"] = group["peak"] * factor


def _forward_backward(
    session: Session,
    inputs: Int[Tensor, "B T"],
    targets: Int[Tensor, "B T"],
    before: LiquidState,
    reset: Bool[Tensor, " B"],
) -> tuple[Float[Tensor, ""], LiquidState]:
    """Put the gradient of the mean loss into the parameters; returns the loss and the state, both detached."""
    parts = session.run.train.gradient_accumulation_steps
    losses, states = [], []
    for rows in torch.arange(session.rows).chunk(parts):
        # Processes add up their gradients once, with the last part.
        last = int(rows[-1]) == session.rows - 1
        with nullcontext() if last else session.runtime.accelerator.no_sync(session.module):
            part = (inputs, targets, before)
            if parts > 1:  # each with a graph of its own: the backward pass of the first would free a common one
                part = (inputs[rows], targets[rows], start_state(session, reset, rows))
            # A tuple, because accelerate's conversion to float32 and DDP both look into tuples.
            loss, after, _ = session.module(
                input_ids=part[0], shift_labels=part[1], state=part[2], skip_logits=True, return_dict=False
            )
            session.runtime.backward(loss * (len(rows) / session.rows))
        losses.append(loss.detach() * (len(rows) / session.rows))
        states.append(after.detach().tensors())
    if len(states) == 1:
        return losses[0], after.detach()
    return torch.stack(losses).sum(), LiquidState.from_tensors(
        {name: torch.cat([state[name] for state in states]) for name in states[0]}
    )


def clip_gradients(parameters: list[torch.nn.Parameter], limit: float) -> Float[Tensor, ""]:
    """Scale the gradient down to a norm of `limit` (0: leave it); returns the norm it had."""
    if limit > 0:
        return torch.nn.utils.clip_grad_norm_(parameters, limit)
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
