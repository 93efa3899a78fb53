"""A stand-in for flash-linear-attention: what its documentation says of two functions, in plain torch.

Signatures as in versions 0.5 to 0.6, so that an argument they do not have is an error; no kernels, any dtype.
"""

from importlib.machinery import ModuleSpec
from types import ModuleType

import torch

calls = []


def chunk_rwkv7(
    r,
    w,
    k,
    v,
    a,
    b,
    scale=1.0,
    initial_state=None,
    output_final_state=False,
    cu_seqlens=None,
    cu_seqlens_cpu=None,
    safe_gate=False,
    chunk_size=None,
):
    """r, w, k, a, b (B, T, H, K), v (B, T, H, V), w the logarithm of the decay; the state (B, H, K, V).

    S' = diag(e^w) S + b (a^T S) + k v^T, o = scale S'^T r. In the dtype of r but for w; final_state float32.
    """
    calls.append("chunk_rwkv7")
    B, T, H, K = r.shape
    V = v.shape[-1]
    assert w.shape == k.shape == a.shape == b.shape == (B, T, H, K) and v.shape == (B, T, H, V)
    assert {t.dtype for t in (k, v, a, b)} == {r.dtype}
    assert (w < 0).all() and (not safe_gate or (w >= -5).all())
    assert cu_seqlens is None and cu_seqlens_cpu is None
    kept = torch.promote_types(r.dtype, torch.float32)
    S = torch.zeros(B, H, K, V, dtype=kept) if initial_state is None else initial_state
    assert S.shape == (B, H, K, V)
    outputs = []
    for r_t, w_t, k_t, v_t, a_t, b_t in zip(*(t.to(kept).unbind(1) for t in (r, w, k, v, a, b)), strict=True):
        read = torch.einsum("bhk,bhkv->bhv", a_t, S)
        S = (
            w_t.exp()[..., None] * S
            + b_t[..., None] * read[..., None, :]
            + k_t[..., None] * v_t[..., None, :]
        )
        outputs.append(scale * torch.einsum("bhk,bhkv->bhv", r_t, S))
    return torch.stack(outputs, 1).to(r.dtype), S if output_final_state else None


def chunk_hgrn(x, g, initial_state=None, output_final_state=False):
    """x, g (B, T, D): o_t = e^(g_t) o_(t-1) + x_t. No gradient goes to or through the states."""
    calls.append("chunk_hgrn")
    assert x.shape == g.shape and x.is_contiguous() and g.is_contiguous() and (g <= 0).all()
    h = torch.zeros_like(x[:, 0]) if initial_state is None else initial_state.detach()
    outputs = []
    for x_t, g_t in zip(x.unbind(1), g.unbind(1), strict=True):
        h = g_t.exp() * h + x_t
        outputs.append(h)
    return torch.stack(outputs, 1), h.detach() if output_final_state else None


def modules():
    """Name -> module, for sys.modules."""
    contents = {
        "fla": {},
        "fla.ops": {},
        "fla.ops.rwkv7": {"chunk_rwkv7": chunk_rwkv7},
        "fla.ops.hgrn": {"chunk_hgrn": chunk_hgrn},
    }
    made = {}
    for name, functions in contents.items():
        made[name] = ModuleType(name)
        made[name].__spec__ = ModuleSpec(name, None)
        vars(made[name]).update(functions)
    return made
