"""`OpticalMultiheadAttention`: a `torch.nn.MultiheadAttention` whose four projections are optical layers."""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.nn import functional as F

from lumina_onnx.nn import _checks, _classes, _fx, _torch_state
from lumina_onnx.nn.linear import OpticalLayer, OpticalLinear, become_plain, recomputed, shallow_copy
from lumina_onnx.profile import OpticalProfile

#: The names of the projections of query, key and value.
PROJECTIONS = ("q_proj", "k_proj", "v_proj")

# torch's own checks of the dimensions, and what it makes of a mask of booleans.
_check_dimensions = _torch_state.internal("nn.functional._mha_shape_check")
_additive = _torch_state.internal("nn.functional._canonical_mask")


def operands(attention: nn.MultiheadAttention) -> list[tuple[Tensor, Tensor | None]]:
    """W and the bias of the projections of query, key and value: rows of one parameter, or parameters of their own."""
    packed, bias = attention.in_proj_weight, attention.in_proj_bias  # read once: they may be computed
    separate = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
    weights: Any = separate if packed is None else packed.chunk(3)
    return list(zip(weights, (None,) * 3 if bias is None else bias.chunk(3), strict=True))


def size(attention: nn.MultiheadAttention, projection: str) -> tuple[int, int]:
    """N and K of a projection."""
    widths = (attention.embed_dim, attention.kdim, attention.vdim)
    return attention.embed_dim, widths[PROJECTIONS.index(projection)]


class OpticalProjection(OpticalLinear):
    """The projection of query, key or value in an :class:`OpticalMultiheadAttention`: an optical layer.

    It has a profile, a noise seed and a name of its own, but no parameters: its weight and bias are those rows of the
    attention's that project its input.
    """

    def __init__(self, attention: nn.MultiheadAttention, index: int) -> None:
        nn.Module.__init__(self)
        self._attention = (attention,)  # a tuple, since nn.Module would take a module for a child
        self._index = index
        self.out_features, self.in_features = size(attention, PROJECTIONS[index])

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The projection's rows of the attention's weight, [N, K]."""
        return self._operands()[0]

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The projection's part of the attention's bias, [N]; None if that has none."""
        return self._operands()[1]

    @_fx.leaf
    def forward(self, input: Tensor, *, operands: tuple[Tensor, Tensor | None] | None = None) -> Tensor:
        """The projected input; `operands` are the layer's weight and bias where the caller has them already."""
        weight, bias = self._operands() if operands is None else operands
        if is_dynamo_compiling():
            return self._compute_when_traced(input, weight, bias)
        return self._compute(input, weight, bias)

    def to_linear(self) -> nn.Linear:
        """Refused: the parameters belong to the attention.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"{self.label}: its weight is a part of its attention's; allowed is to_multihead_attention() of that"
        )

    def reset_parameters(self) -> None:
        """Does nothing: the parameters are the attention's to initialise."""

    def _operands(self) -> tuple[Tensor, Tensor | None]:
        return operands(self._holder())[self._index]

    def _holder(self) -> nn.MultiheadAttention:
        return self._attention[0]

    def _stored(self) -> dict[str, Tensor | None] | None:
        parameters = self._holder()._parameters
        weights = ("in_proj_weight", f"{PROJECTIONS[self._index]}_weight")
        stored = {name: parameters[name] for name in weights if parameters.get(name) is not None}
        if not stored or "in_proj_bias" not in parameters:
            return None
        return {**stored, "in_proj_bias": parameters["in_proj_bias"]}

    def _is_in(self, state_dict: Any, prefix: str) -> bool:
        return any(key.startswith(prefix) for key in state_dict)  # torch shows a module only what is its own


class OpticalMultiheadAttention(_classes.Counterpart, nn.MultiheadAttention):
    """A :class:`torch.nn.MultiheadAttention` whose projections are optical; :func:`lumina_onnx.nn.convert` makes it.

    It has the parameters, the results and the arguments of torch's module, and its ``state_dict`` but for the entries
    that hold ranges and seeds: ``q_proj.input_range`` and so on. A checkpoint of torch's module loads strictly. What
    multiplies by weights are the layers `q_proj`, `k_proj`, `v_proj` and `out_proj`, each with a profile and noise of
    its own; the products of queries, keys and values among each other are torch's, in float32. A projection that was
    skipped is computed as torch does; there is no such layer then, or for `out_proj` it is torch's.

    torch's fused inference path, which multiplies by the weights itself, is not taken, and nested tensors, which only
    that path reads, are refused.

    Attributes:
        q_proj, k_proj, v_proj: the projections of query, key and value, each an :class:`OpticalLinear` whose weight is
            a part of the attention's parameters.
        out_proj: the output's projection, an :class:`OpticalLinear`.
    """

    _plain: ClassVar = nn.MultiheadAttention
    _replaced: ClassVar = (nn.MultiheadAttention,)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **recomputed(self)}  # type: ignore[no-untyped-call]

    def to_multihead_attention(self) -> nn.MultiheadAttention:
        """The module as it was before it became optical, with its very parameters and hooks."""
        attention: Any = shallow_copy(self)
        for name in PROJECTIONS:
            if isinstance(getattr(attention, name, None), OpticalProjection):
                delattr(attention, name)
        if isinstance(attention.out_proj, OpticalLayer):
            attention.out_proj = become_plain(shallow_copy(attention.out_proj))
        attention.__class__ = _classes.plain_class(attention)
        return cast("nn.MultiheadAttention", attention)

    @_fx.leaf
    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention as :class:`torch.nn.MultiheadAttention` computes it, with the same arguments and results."""
        if _fx.is_traced(query, key, value):
            keywords = {
                "key_padding_mask": key_padding_mask,
                "need_weights": need_weights,
                "attn_mask": attn_mask,
                "average_attn_weights": average_attn_weights,
                "is_causal": is_causal,
            }
            node: Any = _fx.layer_node(query, type(self).__name__, key, value, **keywords)
            return node
        batched = self._check(query, key, value, key_padding_mask, attn_mask)
        if is_causal and attn_mask is None:
            raise ValueError("is_causal = True says that attn_mask is causal, but attn_mask is None: allowed is a mask")
        # Where nothing else needs the mask, torch computes a causal one faster without it.
        causal = is_causal and key_padding_mask is None and not need_weights
        batch_first = self.batch_first or not batched
        q, k, v = (
            self._heads(signal if batched else signal.unsqueeze(0), batch_first)
            for signal in self._projected(query, key, value)
        )
        mask = self._mask(query, None if causal else attn_mask, key_padding_mask, q.shape[0])
        k, v, mask = self._extended(k, v, mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * math.sqrt(1 / self.head_dim)) @ k.transpose(-2, -1)
            weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, dropout) if dropout > 0 else weights
            heads = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            heads = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal)
        rows = (heads.permute(0, 2, 1, 3) if batch_first else heads.permute(2, 0, 1, 3)).flatten(2)
        if not batched:
            rows, weights = rows.squeeze(0), None if weights is None else weights.squeeze(0)
        return self._out(rows), weights

    def _check(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None
    ) -> bool:
        """Raises unless the shapes fit each other; returns whether there is a batch."""
        for name, tensor in (("query", query), ("key", key), ("value", value)):
            if tensor.is_nested:
                _checks.check_tensor(name, tensor)
        batched: bool = _check_dimensions(query, key, value, key_padding_mask, attn_mask, self.num_heads)
        axis = 1 if batched and self.batch_first else 0
        batch = query.shape[1 - axis] if batched else 1
        targets, sources = query.shape[axis], key.shape[axis]
        if value.shape[:-1] != key.shape[:-1]:
            raise ValueError(f"value has shape {[*value.shape]}: allowed is that of key, {[*key.shape[:-1]]} and K")
        if batched and key.shape[1 - axis] != batch:
            raise ValueError(f"key has a batch of {key.shape[1 - axis]}: allowed is that of query, {batch}")
        allowed: tuple[int, ...]
        if attn_mask is not None:
            allowed = (targets, sources) if attn_mask.dim() == 2 else (batch * self.num_heads, targets, sources)
            if attn_mask.shape != allowed:
                raise ValueError(f"attn_mask has shape {[*attn_mask.shape]}: allowed is {[*allowed]}")
        if key_padding_mask is not None:
            allowed = (batch, sources) if batched else (sources,)
            if key_padding_mask.shape != allowed:
                raise ValueError(f"key_padding_mask has shape {[*key_padding_mask.shape]}: allowed is {[*allowed]}")
        return batched

    def _projected(self, *signals: Tensor) -> list[Tensor]:
        """Query, key and value after their projections."""
        projected = []
        # One split of the parameter: in the gradient, three would each fill a tensor of its size.
        for name, signal, (weight, bias) in zip(PROJECTIONS, signals, operands(self), strict=True):
            layer = getattr(self, name, None)
            if isinstance(layer, OpticalProjection):
                projected.append(layer(signal, operands=(weight, bias)))
            else:
                projected.append(F.linear(signal, weight, bias))
        return projected

    def _heads(self, signal: Tensor, batch_first: bool) -> Tensor:
        """A projected signal as [batch, heads, length, features of a head]."""
        heads = signal.reshape(*signal.shape[:-1], self.num_heads, self.head_dim)
        return heads.permute(0, 2, 1, 3) if batch_first else heads.permute(1, 2, 0, 3)

    def _mask(
        self, query: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None, batch: int
    ) -> Tensor | None:
        """What is added to the scores, of a shape that broadcasts to [batch, heads, targets, sources]."""
        padding: Tensor | None = _additive(
            mask=key_padding_mask,
            mask_name="key_padding_mask",
            other_type=None if attn_mask is None else attn_mask.dtype,
            other_name="attn_mask",
            target_type=query.dtype,
        )
        mask: Tensor | None = _additive(
            mask=attn_mask,
            mask_name="attn_mask",
            other_type=None,
            other_name="",
            target_type=query.dtype,
            check_other=False,
        )
        if mask is not None and mask.dim() == 3:
            mask = mask.reshape(batch, self.num_heads, *mask.shape[1:])
        if padding is None:
            return mask
        padding = (padding if padding.dim() == 2 else padding.unsqueeze(0)).unsqueeze(1).unsqueeze(1)
        return padding if mask is None else mask + padding

    def _extended(self, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values with those that the module adds: learnt ones, and zeros."""
        added = []
        if self.bias_k is not None and self.bias_v is not None:
            added.append((self.bias_k, self.bias_v))
        if self.add_zero_attn:
            zero = k.new_zeros(1, 1, self.embed_dim)
            added.append((zero, zero))
        for more_k, more_v in added:
            k, v = (
                torch.cat([signal, self._heads(more, True).expand(signal.shape[0], -1, -1, -1)], dim=2)
                for signal, more in ((k, more_k), (v, more_v))
            )
        return k, v, mask if mask is None or not added else F.pad(mask, (0, len(added)))

    def _out(self, rows: Tensor) -> Tensor:
        layer = self.out_proj
        if isinstance(layer, OpticalLayer):
            projected: Tensor = layer(rows)
            return projected
        return F.linear(rows, layer.weight, layer.bias)


def attended(attention: nn.MultiheadAttention) -> None:
    """Makes `attention` itself an optical one, which calls those of its projections that are layers."""
    if not isinstance(attention, OpticalMultiheadAttention):
        attention.__class__ = _classes.optical_class(attention, OpticalMultiheadAttention)


def add_projection(
    attention: nn.MultiheadAttention,
    name: str,
    profile: OpticalProfile,
    seed: int,
    label: str,
    gradient_bits: int | None,
) -> OpticalProjection:
    """Gives `attention` the projection `name` as an optical layer, which is named `label` in messages."""
    projection = OpticalProjection(attention, PROJECTIONS.index(name))
    projection._set_up(profile, seed, label, gradient_bits)
    projection.training = attention.training
    attention.register_module(name, projection)
    modules = attention._modules
    for key in sorted(modules, key=lambda key: (*PROJECTIONS, key).index(key)):  # in the order of their calls
        modules[key] = modules.pop(key)
    return projection
