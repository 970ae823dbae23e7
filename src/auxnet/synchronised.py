"""BatchNorm over the whole batch when several processes each have a part of it."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from auxnet.distributed import Team
from auxnet.modules import copied
from auxnet.network import AuxNet


def synchronise_norms(net: nn.Module, team: Team) -> None:
    """From now on every BatchNorm of a net normalises, in training, by the images of all processes.

    In place: parameters, buffers and their names stay. The result is that of one process with the whole batch,
    even if the parts are unequal. Every norm costs two messages forward and one backward.
    """
    if team.size == 1:
        return
    for norm in net.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.__class__ = TeamBatchNorm  # the module itself stays, and with it whatever refers to it
            cast(TeamBatchNorm, norm).team = team


def unsynchronised(net: AuxNet) -> AuxNet:
    """A copy of a net in which norms that were synchronised use the images of this process alone."""
    twin = copied(net)
    for norm in twin.modules():
        if isinstance(norm, TeamBatchNorm):
            norm.__class__ = LocalBatchNorm  # type: ignore[assignment]
    return twin


class LocalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the images of this process, of any number of dimensions."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


class TeamBatchNorm(nn.SyncBatchNorm):
    """BatchNorm over the images of a team, on any device, for parts of any size.

    (PyTorch's SyncBatchNorm refuses the CPU, and its backward assumes parts of equal size.)
    """

    team: Team

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, ...] -> the same shape, normalised for each channel; N images in this process."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        mean_here, var_here = torch.batch_norm_update_stats(input.detach(), None, None, 0.0)
        mean = self.team.average(mean_here)
        var = self.team.average(var_here + (mean_here - mean) ** 2)  # the law of total variance
        self._track(mean, var, self.team.images * input[0, 0].numel())
        normalised: Tensor = _Normalise.apply(input, self.weight, self.bias, mean, var, self.eps, self.team)  # type: ignore[no-untyped-call]
        return normalised

    def _track(self, mean: Tensor, var: Tensor, values: int) -> None:
        """Move the running statistics, if there are any, towards those of a batch of `values` values per channel."""
        if values < 2:
            raise ValueError(f"BatchNorm needs 2 values per channel, got {values}: was Team.weigh told its size?")
        if not self.track_running_stats or self.running_mean is None:
            return
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        step = 1.0 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, step)
        self.running_var.lerp_(var * (values / (values - 1)), step)


class _Normalise(torch.autograd.Function):
    """y = weight x^ + bias, where x^ = (x - mean) / sqrt(var + eps) and the statistics are those of the team.

    dL/dx = weight / sqrt(var + eps) (dy - E[dy] - x^ E[dy x^]), with E the mean over a channel in all processes.

    Here dy is the gradient of the mean loss of this process's images, while what is minimised is the mean over all
    processes (`Team.average`). In the scale of dy, E is `Team.average` of the processes' sums, divided by the number of
    values per channel in this process.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        eps: float,
        team: Team,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps, ctx.team = eps, team
        return nn.functional.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        over_std = (var + ctx.eps).rsqrt()
        weight = torch.ones_like(mean) if weight is None else weight  # without a weight, CUDA computes no sums
        _, dweight, dbias = torch.ops.aten.native_batch_norm_backward(  # (statistics go in twice)
            *(dy, x, weight, mean, var, mean, over_std, False, ctx.eps, [False, True, True])
        )
        E_dy, E_dy_x = ctx.team.average(torch.stack([dbias, dweight])) * (len(mean) / x.numel())
        scale = over_std * weight
        slope = scale * over_std * E_dy_x
        shift = scale * E_dy - slope * mean
        scale, slope, shift = (c.view(-1, *[1] * (x.dim() - 2)) for c in (scale, slope, shift))
        dx = torch.mul(dy, scale, out=torch.empty_like(x)).addcmul_(slope, x, value=-1).sub_(shift)
        affine = (g if needed else None for g, needed in zip((dweight, dbias), ctx.needs_input_grad[1:3], strict=True))
        return dx, *affine, None, None, None, None
