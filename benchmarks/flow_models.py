"""Flows of the project rebuilt of the layers of normflows and zuko, with copies of the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform

from components.families.flow import Flow
from components.networks.actnorm import ActNorm
from components.networks.bijection import BijectionChain, ChainFlow, FlowNetwork, Logit
from components.networks.coupling import Coupling, Permutation
from components.networks.glow import InvertibleConv
from components.networks.multiscale import MultiScale, squeeze, unsqueeze
from components.networks.nice import Centring, LinearBeside, Scaling


def normflows_model(family: Flow) -> Any:
    """A `MultiscaleFlow` of pictures, with `log_prob(x)` and `inverse(z)` of our latents (B, C, H, W). Its forward is from z to x."""
    import normflows

    start, body = cast("ChainFlow", family.network).chain
    assert isinstance(body, MultiScale)
    shapes, flows = [], []
    x = torch.zeros(1, *family.sample_shape)
    for number, (level, factor) in enumerate(zip(body.levels, body.squeezes, strict=True)):
        x = squeeze(x.chunk(2, dim=1)[0] if number else x, factor)
        shapes.append((x.shape[1] if number == len(body.levels) - 1 else x.shape[1] // 2, *x.shape[2:]))
        blocks = [flow for step in reversed(tuple(cast("BijectionChain", level))) for flow in _normflows_step(step)]
        flows.append([*blocks, _squeeze(factor)])
    priors = [normflows.distributions.DiagGaussian(shape, trainable=False) for shape in reversed(shapes)]
    merges = [normflows.flows.Merge() for _ in shapes[1:]]
    transform = _logit(cast("Logit", cast("BijectionChain", start)[0]))
    model = normflows.MultiscaleFlow(priors, flows[::-1], merges, transform=transform, class_cond=False)
    return _Peer(model, body.squeezes)


class _Peer(nn.Module):
    """The names that the benchmark calls."""

    def __init__(self, model: Any, squeezes: Sequence[int]) -> None:
        super().__init__()
        self.model, self.squeezes = model, squeezes

    def log_prob(self, x: Tensor) -> Tensor:
        return self.model.log_prob(x, None)

    def inverse(self, z: Tensor) -> Tensor:
        parts = []
        for number, factor in enumerate(self.squeezes):
            z = squeeze(z, factor)
            if number < len(self.squeezes) - 1:
                z, aside = z.chunk(2, dim=1)
                parts.append(aside)
        return self.model.forward_and_log_det([z, *reversed(parts)])[0]


def _normflows_step(step: nn.Module) -> list[nn.Module]:
    """Layers of normflows, from z to x, of a step of ours."""
    blocks = tuple(step) if isinstance(step, BijectionChain) else (step,)
    return [layer for block in reversed(blocks) for layer in _normflows_layers(block)]


def _normflows_layers(block: nn.Module) -> list[nn.Module]:
    from normflows import flows

    if isinstance(block, ActNorm):
        layer = flows.ActNorm((len(block.bias), 1, 1))
        layer.s.data, layer.t.data = -block.log_scale.data[None, :, None, None], -block.bias.data[None, :, None, None]
        layer.data_dep_init_done = torch.tensor(1.0)
        return [layer]
    if isinstance(block, InvertibleConv):
        conv = flows.Invertible1x1Conv(len(block.sign), use_lu=True)
        conv.P.copy_(block.permutation)
        conv.sign_S.copy_(block.sign)
        conv.L.data, conv.U.data, conv.log_S.data = (part.data.clone() for part in (block.lower, block.upper, block.log_scale))
        return [conv]
    if isinstance(block, Permutation):
        layer = flows.Permute(len(block.order))
        layer.perm, layer.inv_perm = block.back, block.order
        return [layer]
    assert isinstance(block, Coupling)
    scale, split = "sigmoid" if block.scale == "sigmoid" else "exp", "channel" if block.keeps_first else "channel_inv"
    return [flows.AffineCouplingBlock(_Interleaved(block), scale_map=scale, split_mode=split)]


class _Interleaved(nn.Module):
    """A coupling's network as normflows wants it: shift and scale in turn, both from z to x."""

    def __init__(self, coupling: Coupling) -> None:
        super().__init__()
        self.network, self.scale = copy.deepcopy(coupling.conditioner), coupling.scale
        if coupling.scale == "exp":
            self.reach = nn.Parameter(coupling.reach.data.clone()[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        shift, raw = self.network(x).chunk(2, dim=1)
        return torch.stack([-shift, raw if self.scale == "sigmoid" else -self.reach * raw.tanh()], dim=2).flatten(1, 2)


def _squeeze(factor: int) -> nn.Module:
    from normflows.flows import Flow as Layer

    class Squeeze(Layer):
        def forward(self, z: Tensor) -> tuple[Tensor, int]:
            return unsqueeze(z, factor), 0

        def inverse(self, x: Tensor) -> tuple[Tensor, int]:
            return squeeze(x, factor), 0

    return Squeeze()


def _logit(logit: Logit) -> nn.Module:
    from normflows.flows import Flow as Layer

    class Sigmoid(Layer):
        def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
            x = logit.inverse(z)
            return x, -logit(x)[1]

        def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return logit(x)

    return Sigmoid()


def zuko_model(network: FlowNetwork, dims: int) -> Any:
    """A flow of points (B, D) of zuko's couplings and networks, under a normal prior. Linear maps beside networks must be zeros."""
    import zuko

    base = zuko.lazy.UnconditionalDistribution(zuko.distributions.DiagNormal, torch.zeros(dims), torch.ones(dims), buffer=True)
    flow = zuko.lazy.Flow([layer for module in network.modules() for layer in _zuko_layers(module)], base)
    flow.log_prob = lambda x: flow().log_prob(x)
    return flow


def _zuko_layers(module: nn.Module) -> list[nn.Module]:
    from zuko.transforms import PermutationTransform

    match module:
        case Permutation():
            return [_Lazy(PermutationTransform, order=module.order)]
        case InvertibleConv():  # L (U + diag(s)) as (L diag(s)) (diag(1 / s) U + 1), then P
            scales = module.sign * module.log_scale.exp()
            packed = module.lower.tril(-1) * scales + scales.diag() + module.upper.triu(1) / scales[:, None]
            turn = _Lazy(PermutationTransform, order=module.permutation.argmax(1))
            return [_Lazy(_linear, packed=packed), turn]
        case ActNorm() | Centring() | Scaling():
            zero = torch.zeros(())
            return [_Lazy(_affine, bias=getattr(module, "bias", zero), log_scale=getattr(module, "log_scale", zero))]
        case Coupling():
            return [_zuko_coupling(module)]
    return []


def _affine(bias: Tensor, log_scale: Tensor) -> Any:
    from zuko.transforms import DependentTransform

    return DependentTransform(AffineTransform(bias * log_scale.exp(), log_scale.exp()), 1)


def _linear(packed: Tensor) -> Any:
    from zuko.transforms import LULinearTransform

    return LULinearTransform(packed)


class _Lazy(nn.Module):
    """What zuko makes a transform of: a function of own parameters, and of numbers that are none."""

    def __init__(self, make: Callable[..., Any], **values: Tensor) -> None:
        super().__init__()
        self.make, self.names = make, tuple(values)
        for name, value in values.items():
            copied = value.detach().clone()
            if value.is_floating_point():
                self.register_parameter(name, nn.Parameter(copied))
            else:
                self.register_buffer(name, copied)

    def forward(self, c: Tensor | None = None) -> Any:
        return self.make(**{name: getattr(self, name) for name in self.names})


class _Univariate(nn.Module):
    """What zuko's coupling does to a number: (x + shift) s, as ours."""

    def __init__(self, coupling: Coupling) -> None:
        super().__init__()
        self.scale = coupling.scale
        if coupling.scale == "exp":
            self.reach = nn.Parameter(coupling.reach.detach().clone())

    def forward(self, shift: Tensor, raw: Tensor | None = None) -> Any:
        if raw is None:
            return AffineTransform(shift, torch.ones_like(shift))
        scale = torch.sigmoid(raw + 2) if self.scale == "sigmoid" else (self.reach * raw.tanh()).exp()
        return AffineTransform(shift * scale, scale)


def _zuko_coupling(coupling: Coupling) -> nn.Module:
    """zuko's own coupling and network, with this one's weights."""
    import zuko

    first, last = coupling.parts
    mask = torch.tensor([coupling.keeps_first] * first + [not coupling.keeps_first] * last)
    network = coupling.conditioner
    if isinstance(network, LinearBeside):
        assert not network.linear.weight.any(), "zuko's networks have no linear map beside them"
        network = network.network
    linears = [module for module in cast("nn.Sequential", network) if isinstance(module, nn.Linear)]
    hidden, numbers = [linear.out_features for linear in linears[:-1]], 1 if coupling.scale == "none" else 2
    theirs = zuko.flows.coupling.GeneralCouplingTransform(
        len(mask), 0, mask, univariate=_Univariate(coupling), shapes=[()] * numbers, hidden_features=hidden, activation=nn.ReLU
    )
    layers = [module for module in theirs.hyper if isinstance(module, zuko.nn.Linear)]
    for mine, layer in zip(linears, layers, strict=True):
        layer.load_state_dict(mine.state_dict())
    turns = torch.arange(numbers * coupling.parts[coupling.keeps_first]).view(numbers, -1).T.flatten()  # zuko's stand beside each other
    layers[-1].weight.data, layers[-1].bias.data = linears[-1].weight.data[turns].clone(), linears[-1].bias.data[turns].clone()
    return cast("nn.Module", theirs)
