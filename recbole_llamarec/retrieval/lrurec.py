"""LRURec: a sequential recommender made of linear recurrent units.

Written from the equations of Yue et al., "Linear Recurrent Units for Sequential Recommendation"
(WSDM 2024, arXiv 2310.02367) and Orvieto et al., "Resurrecting Recurrent Neural Networks for Long
Sequences" (ICML 2023, arXiv 2303.06349). Shapes: B batch, L history, H embedding, S complex state,
N positions of all histories of a batch. Histories are laid end to end, so that no padding is
computed: most are far shorter than MAX_ITEM_LIST_LENGTH.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_llamarec import distributed
from recbole_llamarec.keys import Rule
from recbole_llamarec.memory import keep_large_memory
from recbole_llamarec.retrieval.lrurec_settings import RULES, LRURecSettings

# Logits of one piece of the loss, in numbers: 4 MB of float32. All of a batch at once cost a CPU
# more than twice the time (1,500 positions x 12,085 items: 0.34 against 0.13 s).
LOSS_CHUNK = 2**20


def linear_recurrence(decay: Tensor, inputs: Tensor, positions: Tensor) -> Tensor:
    """Solve h_t = decay * h_{t-1} + x_t, h_0 = x_0, for many sequences that lie end to end.

    Recursive doubling takes ceil(log2 L) parallel steps: before the step of stride s every h_t
    holds the last s terms of its sum of decay^k * x_{t-k}; adding decay^s * h_{t-s} makes it the
    last 2 s. Positions below s have no h_{t-s} in their own sequence and are complete already.

    Args:
        decay: Diagonal of the transition, ``[S]``, real or complex, of modulus at most 1 where
            long sequences must not overflow.
        inputs: ``[N, S]``, of the same dtype (complex64 or complex128 in LRURec).
        positions: Place of each row in its own sequence, from 0, ``[N]``, int64.

    Returns:
        All states, ``[N, S]``, dtype of ``inputs``.
    """
    longest = int(positions.max()) + 1 if len(positions) else 0
    states, power, stride = inputs, decay, 1
    while stride < longest:
        rows = (positions >= stride).nonzero().squeeze(1)  # [M]
        states = states.index_add(0, rows, power * states[rows - stride])  # [N, S]
        power, stride = power * power, 2 * stride
    return states


def end_to_end(item_seq: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Lay padded histories end to end.

    Args:
        item_seq: Item ids padded on the right, ``[B, L]``.
        lengths: True lengths, ``[B]``, from 0 to L.

    Returns:
        The items without padding, ``[N]``, and the place of each in its own history, ``[N]``.
    """
    places = torch.arange(item_seq.size(1), device=item_seq.device).expand_as(item_seq)  # [B, L]
    is_real = places < lengths.unsqueeze(1)  # [B, L]
    return item_seq[is_real], places[is_real]


class LinearRecurrentUnit(nn.Module):
    """y_t = Re(C h_t), h_t = lambda * h_{t-1} + gamma * B x_t, with a complex diagonal lambda.

    lambda = exp(-exp(nu_log) + i exp(theta_log)) has modulus below 1 whatever the optimizer does;
    gamma = exp(gamma_log), at first sqrt(1 - |lambda|^2), keeps the states' variance near the
    inputs' (Orvieto et al., sections 3.3 and 3.4).

    Every parameter is real, as optimizers, DDP and checkpoints prefer: B and its bias are a real
    layer whose 2 S outputs are S pairs (real, imaginary), and Re(C h) = Re(C) Re(h) - Im(C) Im(h)
    is a real layer over the same pairs, which learns -Im(C).

    Args:
        hidden_size: H, width of the inputs and outputs.
        state_size: S, number of complex states.
        radius_min: Least modulus of lambda at the start, 0 <= radius_min < radius_max.
        radius_max: Greatest modulus of lambda at the start, below 1.
        phase_max: Greatest phase of lambda at the start, in radians.
    """

    def __init__(
        self,
        hidden_size: int,
        state_size: int,
        radius_min: float,
        radius_max: float,
        phase_max: float,
    ) -> None:
        super().__init__()
        self.in_projection = nn.Linear(hidden_size, 2 * state_size)
        self.out_projection = nn.Linear(2 * state_size, hidden_size)
        # Orvieto et al., section 3.4: B ~ N(0, 1 / 2H), C ~ N(0, 1 / S), in each component
        nn.init.normal_(self.in_projection.weight, std=(2 * hidden_size) ** -0.5)
        nn.init.normal_(self.out_projection.weight, std=(2 * state_size) ** -0.5)
        nn.init.zeros_(self.in_projection.bias)
        nn.init.zeros_(self.out_projection.bias)

        # uniform on the ring between the two radii (lemma 3.2); rand can be 0, its log not
        share = torch.rand(state_size).clamp(min=1e-6)
        modulus_squared = share * (radius_max**2 - radius_min**2) + radius_min**2  # [S]
        phase = phase_max * torch.rand(state_size).clamp(min=1e-6)  # [S]
        self.nu_log = nn.Parameter(torch.log(-0.5 * torch.log(modulus_squared)))
        self.theta_log = nn.Parameter(torch.log(phase))
        self.gamma_log = nn.Parameter(0.5 * torch.log1p(-modulus_squared))

    def decay(self) -> Tensor:
        """Return lambda, ``[S]``, complex, of modulus below 1."""
        return torch.polar(torch.exp(-torch.exp(self.nu_log)), torch.exp(self.theta_log))

    def forward(self, inputs: Tensor, positions: Tensor) -> Tensor:
        """Map ``[N, H]`` to ``[N, H]``, causally; ``positions`` as in :func:`linear_recurrence`."""
        # there is no complex bfloat16, so under autocast the recurrence stays in float32
        pairs = self.in_projection(inputs).to(self.nu_log.dtype)  # [N, 2 S]
        driven = torch.view_as_complex(pairs.unflatten(-1, (-1, 2)))  # [N, S] complex
        states = linear_recurrence(self.decay(), self.gamma_log.exp() * driven, positions)
        return self.out_projection(torch.view_as_real(states).flatten(-2))  # [N, H]


class LRUBlock(nn.Module):
    """A linear recurrent unit, then a position-wise feed-forward network with GELU.

    Each is followed by dropout, its residual connection and a layer norm (LRURec, section 3.3).
    """

    def __init__(self, settings: LRURecSettings) -> None:
        super().__init__()
        width, eps = settings.embedding_size, settings.layer_norm_eps
        self.recurrence = LinearRecurrentUnit(
            width,
            settings.state_size,
            settings.radius_min,
            settings.radius_max,
            settings.phase_max,
        )
        self.recurrence_norm = nn.LayerNorm(width, eps=eps)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, settings.inner_size),
            nn.GELU(),
            nn.Dropout(settings.dropout_prob),
            nn.Linear(settings.inner_size, width),
        )
        self.feed_forward_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(settings.dropout_prob)

    def forward(self, inputs: Tensor, positions: Tensor) -> Tensor:
        """Map ``[N, H]`` to ``[N, H]``, causally; ``positions`` as in :func:`linear_recurrence`."""
        mixed = self.recurrence_norm(inputs + self.dropout(self.recurrence(inputs, positions)))
        return self.feed_forward_norm(mixed + self.dropout(self.feed_forward(mixed)))


class LRURec(SequentialRecommender):
    """LRURec, trained by cross-entropy over all items at every position of a sequence.

    Args:
        config: RecBole's ``Config`` with the keys of properties/model/LRURec.yaml.
        dataset: The training data set; only its number of items is read.

    Raises:
        ValueError: A setting is missing or out of range.
    """

    input_type = InputType.POINTWISE
    rules: ClassVar[Mapping[str, Rule]] = RULES

    def __init__(self, config: Any, dataset: Any) -> None:
        keep_large_memory()
        super().__init__(config, dataset)
        settings = LRURecSettings.from_config(config)
        width = settings.embedding_size
        self.item_embedding = nn.Embedding(self.n_items, width, padding_idx=0)
        nn.init.trunc_normal_(self.item_embedding.weight, std=settings.initializer_range)
        with torch.no_grad():
            self.item_embedding.weight[0] = 0
        self.item_bias = nn.Parameter(torch.zeros(self.n_items))
        self.embedding_norm = nn.LayerNorm(width, eps=settings.layer_norm_eps)
        self.embedding_dropout = nn.Dropout(settings.embedding_dropout_prob)
        self.blocks = nn.ModuleList(LRUBlock(settings) for _ in range(settings.n_layers))

    def hidden_states(self, items: Tensor, positions: Tensor) -> Tensor:
        """Encode every position of histories that lie end to end.

        The state at a position depends on the items of its own history up to it.

        Args:
            items: Item ids, ``[N]``, int64.
            positions: Place of each item in its history, from 0, ``[N]``, int64.

        Returns:
            ``[N, H]``.
        """
        hidden = self.embedding_dropout(self.embedding_norm(self.item_embedding(items)))  # [N, H]
        for block in self.blocks:
            hidden = block(hidden, positions)
        return hidden

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """Encode each history by the state of its last item.

        Args:
            item_seq: Item ids padded on the right, ``[B, L]``, int64.
            item_seq_len: True lengths, ``[B]``, int64, from 0 to L.

        Returns:
            ``[B, H]``. An empty history has the state zero, that is: the scores are the item bias.
        """
        items, positions = end_to_end(item_seq, item_seq_len)  # [N], [N]
        hidden = self.hidden_states(items, positions)  # [N, H]
        filled = item_seq_len > 0  # [B]
        last = hidden.new_zeros(len(item_seq), hidden.size(1))  # [B, H]
        last[filled] = hidden[item_seq_len.cumsum(0)[filled] - 1]
        return last

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Mean cross-entropy of the next item over all real positions of all rows.

        Of several processes the mean is over the rows of all, times this process's share of it: so
        that the mean of their gradients is the gradient of one process with all rows.

        A row h_1 .. h_n with target t is scored on the inputs h_1 .. h_n against h_2 .. h_n, t.
        It suits RecBole's rows, one for each prefix, but then sees early items again and again:
        ``LRURecTrainer`` keeps the rows that cover each position once. Logits take
        N x n_items x 4 bytes, where N is at most train_batch_size * L.

        Args:
            interaction: item_id_list ``[B, L]``, item_length ``[B]``, item_id (target) ``[B]``.

        Returns:
            Scalar; 0, with a gradient of 0, if no row has a history.
        """
        item_seq, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        items, positions = end_to_end(item_seq, lengths)  # [N], [N]
        targets = items.roll(-1)  # [N]
        filled = lengths > 0  # [B]
        targets[lengths.cumsum(0)[filled] - 1] = interaction[self.POS_ITEM_ID][filled]

        hidden = self.hidden_states(items, positions)  # [N, H]
        # the padding item is no candidate: without its column its embedding stays zero
        weight, bias = self.item_embedding.weight[1:], self.item_bias[1:]
        rows = max(1, LOSS_CHUNK // self.n_items)
        losses = [
            F.cross_entropy(F.linear(states, weight, bias), chunk, reduction="sum")
            for states, chunk in zip(hidden.split(rows), (targets - 1).split(rows), strict=True)
        ]
        n_positions = distributed.mean_over_processes(len(hidden), hidden.device)
        return torch.stack(losses).sum() / max(n_positions, 1)

    def predict(self, interaction: Any) -> Tensor:
        """Score one item for each history, item_id ``[B]``; returns ``[B]``."""
        hidden = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        items = interaction[self.ITEM_ID]
        return (hidden * self.item_embedding(items)).sum(dim=1) + self.item_bias[items]

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Score every item for each history; returns ``[B, n_items]``, a new tensor."""
        hidden = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        return F.linear(hidden, self.item_embedding.weight, self.item_bias)
