"""LRURec: the recurrence against its definition, padding, causality, RecBole's interface."""

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.utils import init_seed
from torch.nn.parallel import DistributedDataParallel

import recbole_llamarec  # noqa: F401  (registers the model, sets the shims)
from recbole_llamarec.retrieval.lrurec import (
    LinearRecurrentUnit,
    LRURec,
    LRURecSettings,
    end_to_end,
    linear_recurrence,
)
from recbole_llamarec.retrieval.lrurec_trainer import LRURecTrainer, window_loader, window_rows

YAML = Path(__file__).parents[2] / "properties" / "model" / "LRURec.yaml"
N_ITEMS = 12
FIELDS = {
    "USER_ID_FIELD": "user_id",
    "ITEM_ID_FIELD": "item_id",
    "LIST_SUFFIX": "_list",
    "ITEM_LIST_LENGTH_FIELD": "item_length",
    "NEG_PREFIX": "neg_",
    "MAX_ITEM_LIST_LENGTH": 6,
    "device": "cpu",
}
SMALL = {"embedding_size": 8, "state_size": 5, "inner_size": 16, "train_batch_size": 4}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Items:
    """The only thing LRURec asks of a data set."""

    def num(self, field):
        return N_ITEMS


def model_settings(**overrides):
    return {**yaml.safe_load(YAML.read_text()), **FIELDS, **SMALL, **overrides}


def small_model(**overrides):
    torch.manual_seed(0)
    return LRURec(model_settings(**overrides), Items())


def rows(histories, targets, width=6):
    """RecBole's training rows from lists of item ids."""
    item_seq = torch.zeros(len(histories), width, dtype=torch.long)
    for row, history in enumerate(histories):
        item_seq[row, : len(history)] = torch.tensor(history, dtype=torch.long)
    return Interaction(
        {
            "item_id_list": item_seq,
            "item_length": torch.tensor([len(history) for history in histories]),
            "item_id": torch.tensor(targets),
        }
    )


# --- the recurrence ---------------------------------------------------------------------------


def step_by_step(decay, inputs):
    state, states = torch.zeros_like(inputs[:, 0]), []
    for t in range(inputs.size(1)):
        state = decay * state + inputs[:, t]
        states.append(state)
    return torch.stack(states, dim=1)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 50, 200])
def test_recurrence_equals_its_definition_with_gradients(length):
    generator = torch.Generator().manual_seed(length)
    inputs = torch.randn(3, length, 4, dtype=torch.complex128, generator=generator)
    modulus = torch.linspace(0.3, 0.999, 4, dtype=torch.float64)
    phase = torch.rand(4, dtype=torch.float64, generator=generator) * 6
    weights = torch.randn(3, length, 4, dtype=torch.complex128, generator=generator)

    def end_to_end_recurrence(decay, inputs):
        positions = torch.arange(length).repeat(3)
        return linear_recurrence(decay, inputs.flatten(0, 1), positions).unflatten(0, (3, length))

    results = []
    for solve in (end_to_end_recurrence, step_by_step):
        decay = torch.polar(modulus, phase).requires_grad_()
        leaf = inputs.clone().requires_grad_()
        states = solve(decay, leaf)
        (states * weights).real.sum().backward()
        # at length 1 the fast path never touches decay
        slope = torch.zeros_like(decay) if decay.grad is None else decay.grad
        results.append((states.detach(), leaf.grad, slope))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, atol=1e-6, rtol=1e-6)


def test_recurrence_leaves_its_arguments_alone():
    decay, inputs = torch.full((2,), 0.5), torch.ones(5, 2)
    linear_recurrence(decay, inputs, torch.arange(5))
    assert torch.equal(inputs, torch.ones(5, 2))
    assert torch.equal(decay, torch.full((2,), 0.5))


def test_unit_equals_the_papers_complex_equations():
    torch.manual_seed(1)
    unit = LinearRecurrentUnit(6, 4, 0.5, 0.9, 6.28).double()
    torch.nn.init.normal_(unit.in_projection.bias)
    inputs = torch.randn(2, 7, 6, dtype=torch.float64)

    in_real, in_imaginary = unit.in_projection.weight[0::2], unit.in_projection.weight[1::2]
    bias = torch.complex(unit.in_projection.bias[0::2], unit.in_projection.bias[1::2])
    out_weight = unit.out_projection.weight
    out_matrix = torch.complex(out_weight[:, 0::2], -out_weight[:, 1::2])
    decay = torch.exp(torch.complex(-torch.exp(unit.nu_log), torch.exp(unit.theta_log)))
    driven = inputs.to(torch.complex128) @ torch.complex(in_real, in_imaginary).T + bias
    states = step_by_step(decay, torch.exp(unit.gamma_log) * driven)
    expected = (states @ out_matrix.T).real + unit.out_projection.bias
    found = unit(inputs.flatten(0, 1), torch.arange(7).repeat(2)).unflatten(0, (2, 7))
    torch.testing.assert_close(found, expected)


def test_unit_starts_on_the_ring_and_normalised():
    torch.manual_seed(2)
    unit = LinearRecurrentUnit(4, 500, 0.8, 0.99, 1.0)
    modulus = unit.decay().abs()
    assert modulus.min() >= 0.8 - 1e-5 and modulus.max() <= 0.99 + 1e-5
    assert unit.decay().angle().min() >= 0 and unit.decay().angle().max() <= 1.0 + 1e-5
    torch.testing.assert_close(unit.gamma_log.exp(), torch.sqrt(1 - modulus**2), atol=1e-4, rtol=0)


def test_every_parameter_is_real():
    assert not any(parameter.is_complex() for parameter in small_model().parameters())


# --- causality, padding, empty histories ------------------------------------------------------


def test_a_later_item_does_not_change_earlier_states():
    model = small_model().eval()
    items, positions = torch.tensor([1, 2, 3, 4, 5, 6]), torch.arange(6)
    states = model.hidden_states(items, positions)
    for position in range(6):
        changed = items.clone()
        changed[position] = 11
        other = model.hidden_states(changed, positions)
        assert torch.equal(other[:position], states[:position])
        assert not torch.allclose(other[position], states[position])


def test_histories_that_lie_end_to_end_do_not_meet():
    model = small_model().eval()
    item_seq = torch.tensor([[1, 2, 3, 0], [0, 0, 0, 0], [4, 0, 0, 0], [5, 6, 7, 8]])
    lengths = torch.tensor([3, 0, 1, 4])
    items, positions = end_to_end(item_seq, lengths)
    assert items.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert positions.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    together = model(item_seq, lengths)
    for row in range(4):
        alone = model(item_seq[row : row + 1], lengths[row : row + 1])
        torch.testing.assert_close(alone, together[row : row + 1])


def test_padding_neither_leaks_nor_counts():
    model = small_model().eval()
    lengths = torch.tensor([3])
    short = model(torch.tensor([[4, 2, 9]]), lengths)
    for amount in (1, 2, 5, 30):
        padding = torch.zeros(1, amount, dtype=torch.long)
        padded = torch.cat([torch.tensor([[4, 2, 9]]), padding], dim=1)
        torch.testing.assert_close(model(padded, lengths), short, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(model(padded + (padded == 0) * 7, lengths), short)


def test_loss_does_not_depend_on_padding():
    model = small_model().eval()
    narrow = rows([[1, 2, 3], [4]], [5, 6], width=3)
    wide = rows([[1, 2, 3], [4]], [5, 6], width=9)
    torch.testing.assert_close(model.calculate_loss(narrow), model.calculate_loss(wide))


def test_empty_history_scores_by_the_bias():
    model = small_model().eval()
    torch.nn.init.normal_(model.item_bias)
    scores = model.full_sort_predict(rows([[], [1, 2]], [3, 3]))
    torch.testing.assert_close(scores[0], model.item_bias.detach())
    assert torch.isfinite(scores).all()


def test_loss_of_empty_histories_is_zero_and_differentiable():
    model = small_model()
    mixed = model.eval().calculate_loss(rows([[], [1, 2]], [3, 4]))
    torch.testing.assert_close(mixed, model.calculate_loss(rows([[1, 2]], [4])))
    loss = model.calculate_loss(rows([[], []], [3, 4]))
    loss.backward()
    assert loss.item() == 0


# --- the loss and RecBole's interface ---------------------------------------------------------


def test_loss_is_the_mean_over_every_position():
    model = small_model().eval()
    histories, targets = [[1, 2, 3], [7, 8, 9, 10, 11, 1], [5]], [4, 2, 6]
    terms = []
    for history, target in zip(histories, targets, strict=True):
        for end, item in enumerate([*history[1:], target], start=1):
            scores = model.full_sort_predict(rows([history[:end]], [item]))[0]
            terms.append(-torch.log_softmax(scores[1:], dim=0)[item - 1])
    loss = model.calculate_loss(rows(histories, targets))
    torch.testing.assert_close(loss, torch.stack(terms).mean())


def test_interface_shapes_and_agreement():
    model = small_model().eval()
    torch.nn.init.normal_(model.item_bias)
    batch = rows([[1, 2, 3], [4]], [5, 6])
    assert model(batch["item_id_list"], batch["item_length"]).shape == (2, 8)
    scores = model.full_sort_predict(batch)
    assert scores.shape == (2, N_ITEMS) and scores.dtype == torch.float32
    assert scores.is_contiguous()
    torch.testing.assert_close(model.predict(batch), scores[[0, 1], batch["item_id"]])


def test_padding_embedding_stays_zero_in_training():
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model.calculate_loss(rows([[1, 2, 3], [4]], [5, 6])).backward()
        optimizer.step()
    assert torch.count_nonzero(model.item_embedding.weight[0]) == 0


def test_training_learns_a_cycle():
    model = small_model(dropout_prob=0.0, embedding_dropout_prob=0.0)
    batch = rows([[1, 2, 3, 4, 1, 2], [3, 4, 1, 2, 3, 4]], [3, 1])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        model.calculate_loss(batch).backward()
        optimizer.step()
    assert model.eval().full_sort_predict(batch).argmax(dim=1).tolist() == [3, 1]


def test_state_dict_round_trip_and_deep_copy(tmp_path):
    model = small_model().eval()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    torch.manual_seed(99)
    other = LRURec(model_settings(), Items()).eval()
    other.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    batch = rows([[1, 2, 3]], [4])
    expected = model.full_sort_predict(batch)
    assert torch.equal(other.full_sort_predict(batch), expected)
    assert torch.equal(copy.deepcopy(model).full_sort_predict(batch), expected)


def test_autocast_keeps_the_recurrence_complex():
    model = small_model().eval()
    batch = rows([[1, 2, 3]], [4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.calculate_loss(batch)
    loss.backward()
    torch.testing.assert_close(loss.float(), model.calculate_loss(batch), atol=0.05, rtol=0.05)


def test_distributed_data_parallel_over_gloo(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        plain = small_model().eval()
        wrapped = DistributedDataParallel(copy.deepcopy(plain))
        item_seq, lengths = torch.tensor([[1, 2, 3, 0]]), torch.tensor([3])
        wrapped(item_seq, lengths).sum().backward()
        plain(item_seq, lengths).sum().backward()
        for name, parameter in plain.blocks.named_parameters():
            other = dict(wrapped.module.blocks.named_parameters())[name]
            torch.testing.assert_close(other.grad, parameter.grad)
    finally:
        torch.distributed.destroy_process_group()


def test_settings_report_every_error_at_once():
    with pytest.raises(ValueError) as caught:
        small_model(embedding_size=0, dropout_prob=1.0, layer_norm_eps="small", loss_type="BPR")
    for name in ("embedding_size", "dropout_prob", "layer_norm_eps", "loss_type"):
        assert name in str(caught.value)
    with pytest.raises(ValueError, match="radius_min"):
        small_model(radius_min=0.9, radius_max=0.8)
    with pytest.raises(ValueError, match="phase_max not set"):
        small_model(phase_max=None)


def test_yaml_explains_every_key_and_has_every_setting():
    text = YAML.read_text()
    assert set(LRURecSettings.__dataclass_fields__) <= set(yaml.safe_load(text))
    assert all("# (" in line for line in text.splitlines() if line and not line.startswith("#"))


# --- the windows ------------------------------------------------------------------------------


def prefix_rows(training_lengths, window):
    """RecBole's rows for users of so many training items: (user, position, row length)."""
    return [
        (user, position, min(position, window))
        for user, n_items in enumerate(training_lengths, start=1)
        for position in range(1, n_items)
    ]


def covered(table, kept, window):
    """(user, position) of every target that the kept rows train."""
    return sorted(
        (user, target)
        for user, position, length in (table[row] for row in kept)
        for target in range(position - length + 1, position + 1)
    )


@pytest.mark.parametrize("window", [1, 2, 3, 5, 50])
@pytest.mark.parametrize("order", ["contiguous", "by position", "at random"])
def test_windows_cover_every_position_once(window, order):
    table = prefix_rows([*range(1, 14), 101, 50, 51, 52, 200], window)
    if order == "by position":
        table.sort(key=lambda row: (row[1], row[0]))
    elif order == "at random":
        np.random.default_rng(window).shuffle(table)
    users, positions, lengths = np.array(table).T
    kept = window_rows(users, positions, lengths, window)
    assert covered(table, kept, window) == sorted(zip(users, positions, strict=True))
    assert kept.tolist() == sorted(kept.tolist())


def test_windows_of_a_split_with_gaps_cover_every_row_and_no_position_twice():
    table = [row for row in prefix_rows([30, 40], 4) if row[1] % 5 != 2]
    table += [(3, position, min(position, 4)) for position in (2, 9, 17)]
    np.random.default_rng(0).shuffle(table)
    users, positions, lengths = np.array(table).T
    taught = covered(table, window_rows(users, positions, lengths, 4), 4)
    assert set(zip(users, positions, strict=True)) <= set(taught)
    assert len(taught) == len(set(taught))


def test_window_rows_of_nothing_and_of_wrong_arguments():
    nothing = np.array([], dtype=np.int64)
    assert window_rows(nothing, nothing, nothing, 5).shape == (0,)
    with pytest.raises(ValueError, match="window is 0"):
        window_rows(nothing, nothing, nothing, 0)
    with pytest.raises(ValueError, match="as many of each"):
        window_rows(np.array([1]), nothing, nothing, 5)


# --- the trainer on a small data set ----------------------------------------------------------


@pytest.fixture
def data_folder(tmp_path):
    generator = np.random.default_rng(0)
    table = pd.DataFrame(
        [
            (f"u{user}", f"i{(start + step) % 11}", float(step))
            for user, start in enumerate(generator.integers(0, 11, size=20))
            for step in range(6 + user)
        ],
        columns=["user_id:token", "item_id:token", "timestamp:float"],
    )
    folder = tmp_path / "tiny"
    folder.mkdir()
    table.to_csv(folder / "tiny.inter", sep="\t", index=False)
    return tmp_path


def tiny_run(data_folder, monkeypatch, **overrides):
    monkeypatch.setattr("sys.argv", ["pytest"])
    monkeypatch.chdir(data_folder)  # RecBole writes its logs beside the caller
    config = Config(
        model=LRURec,
        dataset="tiny",
        config_file_list=[str(YAML)],
        config_dict={
            **SMALL,
            "data_path": str(data_folder),
            "checkpoint_dir": str(data_folder / "saved"),
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "MAX_ITEM_LIST_LENGTH": 6,
            "metrics": ["NDCG", "AveragePopularity"],
            "topk": [10],
            "epochs": 2,
            "use_gpu": False,
            "show_progress": False,
            **overrides,
        },
    )
    init_seed(config["seed"], config["reproducibility"])
    train_data, valid_data, _ = data_preparation(config, create_dataset(config))
    init_seed(config["seed"], config["reproducibility"])
    model = LRURec(config, train_data._dataset)
    return config, train_data, valid_data, model


def test_window_loader_trains_every_position_of_recboles_rows_once(data_folder, monkeypatch):
    config, train_data, _, _ = tiny_run(data_folder, monkeypatch)
    n_rows = len(train_data._dataset)
    loader = window_loader(config, train_data)
    feat = loader._dataset.inter_feat
    assert int(feat["item_length"].sum()) == n_rows == len(train_data._dataset)
    assert len(feat) < n_rows
    # a user repeats items, so the pairs are compared with their counts
    trained, wanted = [], train_data._dataset.inter_feat
    for batch in loader:
        for user, items, length, target in zip(
            batch["user_id"].tolist(),
            batch["item_id_list"].tolist(),
            batch["item_length"].tolist(),
            batch["item_id"].tolist(),
            strict=True,
        ):
            trained += [(user, item) for item in [*items[1:length], target]]
    assert sorted(trained) == sorted(
        zip(wanted["user_id"].tolist(), wanted["item_id"].tolist(), strict=True)
    )


def test_fit_repeats_exactly_and_metrics_see_every_row(data_folder, monkeypatch):
    results = []
    for _ in range(2):
        config, train_data, valid_data, model = tiny_run(data_folder, monkeypatch)
        trainer = LRURecTrainer(config, model)
        score, result = trainer.fit(train_data, valid_data, verbose=False, saved=False)
        results.append((score, result, model.state_dict()))
        counts = trainer.eval_collector.data_struct.get("data.count_items")
        assert sum(counts.values()) == len(train_data._dataset)
    assert results[0][:2] == results[1][:2]
    for name, weights in results[0][2].items():
        assert torch.equal(weights, results[1][2][name])
