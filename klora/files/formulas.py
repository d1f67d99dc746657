"""dW of each type, from tensors to tensors, without alpha: the scale is the caller's.

Symbols as in the LyCORIS paper (arXiv 2309.14859). W is ``[out, in]`` or ``[out, in, kh, kw]``; ``flat``
means that a convolution's last three dimensions are one.
"""

from __future__ import annotations

from klora.files.late_torch import Tensor, torch


def product(up: Tensor, down: Tensor) -> Tensor:
    """LoRA and LoCon: up ``[out, r, ...]`` @ down ``[r, in, ...]``, flat: ``[out, in * kh * kw]``."""
    return up.flatten(1) @ down.flatten(1)


def tucker(core: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Tucker: core ``[r1, r2, kh, kw]``, up ``[out, r1]``, down ``[r2, in]`` -> ``[out, in, kh, kw]``."""
    return torch.einsum("oi,ickl->ockl", up, half_tucker(core, down))


def half_tucker(core: Tensor, down: Tensor) -> Tensor:
    """What of `tucker` does not depend on the output: ``[r1, in, kh, kw]``."""
    return torch.einsum("ijkl,jc->ickl", core, down)


def kronecker(first: Tensor, second: Tensor) -> Tensor:
    """LoKr: w1 ``[a, b]`` (x) w2 ``[c, d, ...]`` -> ``[a * c, b * d, ...]``."""
    # Not torch.kron: it fails on kernels of 1 x 1 with some strides ("view size is not compatible").
    outer = torch.einsum("ab,cd...->acbd...", first, second)
    return outer.reshape(
        first.shape[0] * second.shape[0], first.shape[1] * second.shape[1], *second.shape[2:]
    )


def glora(base: Tensor, a_in: Tensor, a_out: Tensor, added: Tensor) -> Tensor:
    """GLoRA: W ``[out, in, ...]`` times ``a_in [in, r]`` times ``a_out [r, in]`` along its input, plus
    ``added``."""
    mixed = torch.einsum("oi...,ir,rj->oj...", base, a_in, a_out)
    return mixed + added.reshape(mixed.shape)


def decomposed(base: Tensor, delta: Tensor, magnitude: Tensor, *, per_output: bool) -> Tensor:
    """DoRA (arXiv 2402.09353, eq. 5): m * (W + dV) / ||W + dV|| - W, the norm per output or per input.

    ``magnitude`` has one element per output or per input. The norm is that of W + dV, as in LyCORIS and
    PEFT. A row or column of norm zero stays zero.
    """
    # dW is a small difference of large numbers, so fp64 where the device has it.
    wide = torch.float32 if base.device.type == "mps" else torch.float64
    direction = base.to(wide) + delta.to(wide)
    kept = 0 if per_output else 1
    others = [axis for axis in range(direction.dim()) if axis != kept]
    norm = torch.linalg.vector_norm(direction, dim=others, keepdim=True)
    scaled = direction * (magnitude.to(wide).reshape(norm.shape) / norm.clamp_min(torch.finfo(wide).tiny))
    difference: Tensor = scaled - base.to(wide)
    return difference.to(delta.dtype)


def rescaled(base: Tensor, delta: Tensor, magnitude: Tensor, norms: Tensor) -> Tensor:
    """The same for some rows of a DoRA per input, with the ``norms`` of the whole columns of W + dV."""
    shape = [1, -1, *[1] * (base.dim() - 2)]
    factor = (magnitude.double() / norms.clamp_min(torch.finfo(torch.float64).tiny)).reshape(shape)
    difference: Tensor = (base.double() + delta.double()) * factor - base.double()
    return difference.to(delta.dtype)
