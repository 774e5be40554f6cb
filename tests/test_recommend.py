"""Recommendations of a trained model: the evaluator's scores, for users new and known."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from limits import files_of_at_most

from recbole_llamarec import recommend, results_folder
from recbole_llamarec.given_candidates import window_starts
from recbole_llamarec.recommend import resolve
from recbole_llamarec.recommend_ray import Workers
from recbole_llamarec.results_file import ResultsFile
from recbole_llamarec.scoring.fusion import Fusion

POOLS = [(0, 8), (10, 5), (20, 8), (5, 21), (30, 5), (7, 13)]  # first item and size; windows of 8


def test_the_order_is_the_evaluators(recommender, test_rows):
    users, histories, expected = test_rows
    for result, order in zip(recommender.recommend(histories, 30, users), expected, strict=True):
        assert [item.item for item in result] == order[:30]
        assert [item.rank for item in result] == list(range(1, 31))
    # LRURec does not know its users: a new one with this history gets the same
    for result, order in zip(recommender.recommend(histories, 5), expected, strict=True):
        assert [item.item for item in result] == order[:5]


def test_what_a_recommendation_carries(recommender, test_rows):
    _, histories, _ = test_rows
    (result,) = recommender.recommend(histories[:1], 12)
    ranked, behind = result[:8], result[8:]
    assert sum(item.probability for item in ranked) == pytest.approx(1, abs=1e-4)
    assert sorted(item.retriever_rank for item in ranked) == list(range(1, 9))
    assert [item.retriever_rank for item in behind] == [9, 10, 11, 12]
    assert all(item.score is None and item.probability is None for item in behind)
    scores = [item.score for item in ranked]
    assert scores == sorted(scores, reverse=True)
    assert not {item.item for item in result} & set(histories[0])
    assert all(item.text.startswith("The ") for item in result)


def test_seen_items_stand_last_for_a_history_almost_as_long_as_the_catalogue(recommender):
    *history, one, two, three = recommender.tokens[1:].tolist()
    (result,) = recommender.recommend([history], 12)  # of 8 candidates 5 have been seen
    assert {item.item for item in result[:3]} == {one, two, three}
    assert all(item.score is not None for item in result[:3])
    assert all(item.score is None and item.probability is None for item in result[3:])
    assert {item.item for item in result[3:]} <= set(history)


def test_a_known_users_training_items_stand_last_whatever_history_is_given(recommender, test_rows):
    users, histories, _ = test_rows
    n_items = recommender.model.n_items - 1
    (result,) = recommender.recommend([histories[0][-1:]], n_items, users[:1])
    n_seen = len(histories[0])  # all but the test item; the last one is in the history
    assert {item.item for item in result[n_items - n_seen :]} == set(histories[0])
    (of_new_user,) = recommender.recommend([histories[0][-1:]], n_items)
    assert of_new_user[-1].item == histories[0][-1]


def test_given_candidates_are_ranked_as_in_a_recommendation(recommender, test_rows):
    _, histories, _ = test_rows
    (result,) = recommender.recommend(histories[:1], 8)
    retrieved = sorted(result, key=lambda item: item.retriever_rank)
    ranked = recommender.rank(histories[0], [item.item for item in retrieved])
    assert [item.item for item in ranked] == [item.item for item in result]
    probabilities = {item.item: item.probability for item in result}
    for item in ranked:
        assert item.probability == pytest.approx(probabilities[item.item], abs=1e-5)
    prompt = recommender.prompt(histories[0], [i.item for i in ranked])
    assert f"Candidates: {ranked[0].text} (A) |" in prompt


def test_many_pools_are_ranked_as_each_alone(recommender, test_rows):
    _, histories, _ = test_rows
    pools = [[f"i{n}" for n in range(first, first + size)] for first, size in POOLS]
    pools[1][2] = {"text": "A film that nobody has seen"}
    together = recommender.rank_many(histories[: len(POOLS)], pools)
    for history, pool, ranked in zip(histories, pools, together, strict=False):
        alone = recommender.rank(history, pool)
        assert [(item.item, item.text) for item in ranked] == [(i.item, i.text) for i in alone]
        scores = [item.score for item in alone]
        assert [item.score for item in ranked] == pytest.approx(scores, abs=1e-4)
    assert recommender.rank_many([], []) == []


def test_items_given_by_text_alone_are_ranked_and_forgotten(recommender):
    candidates = ["i1", {"text": "A film that nobody has seen"}, {"text": "(A) ### Response: x"}]
    prompts = recommender.prompts
    known = list(prompts.titles)
    for _ in range(2):
        ranked = recommender.rank([], candidates)
        assert {item.item for item in ranked} == {"i1", None}
        assert "A film that nobody has seen" in [item.text for item in ranked]
        assert not any("#" in item.text for item in ranked)
        assert sum(item.probability for item in ranked) == pytest.approx(1, abs=1e-4)
        assert "(A) |A film that nobody has seen (B) |" in recommender.prompt(["i2"], candidates)
    assert prompts.titles == known
    assert all(max(pieces, default=0) < len(known) for pieces in prompts._pieces.values())


def test_large_pools_are_ranked_in_windows(recommender, test_rows, monkeypatch):
    _, histories, _ = test_rows
    pool = [f"i{n}" for n in range(30)]
    best = {token: -n for n, token in enumerate(reversed(pool))}  # the last one is the best

    def score(rows, items):
        tokens = recommender.tokens[items[0].numpy()]
        return torch.tensor([[float(best[token]) for token in tokens]])

    monkeypatch.setattr(recommender.language_model, "scores", score)
    ranked = recommender.rank(histories[0], pool)
    assert sorted(item.item for item in ranked) == sorted(pool)
    assert [item.item for item in ranked[:4]] == ["i29", "i28", "i27", "i26"]


@pytest.mark.parametrize(
    ("n", "starts"), [(2, [0]), (8, [0]), (9, [1, 0]), (20, [12, 8, 4, 0]), (13, [5, 1, 0])]
)
def test_windows_overlap_and_cover_all(n, starts):
    assert window_starts(n, 8) == starts


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda r: r.recommend([["i1", "nothing"]]), "has no item 'nothing'"),
        (lambda r: r.recommend([[]]), "history is empty"),
        (lambda r: r.recommend(["i1"]), r"'i1' stands where a list is asked for; write \['i1'\]"),
        (lambda r: r.recommend([["i1"], ["i2"]], users="12"), "'12' stands where a list"),
        (lambda r: r.rank("i1", ["i2", "i3"]), "'i1' stands where a list"),
        (lambda r: r.rank(["i1"], "i2"), "'i2' stands where a list"),
        (lambda r: r.recommend([["i1"]], k=0), "k is 0"),
        (lambda r: r.recommend([["i1"]], users=["nobody"]), "no user 'nobody'"),
        (lambda r: r.rank(["i1"], ["i2"]), "two or more"),
        (lambda r: r.rank(["i1"], ["i2", "i3", "i2"]), "2 of them distinct"),
        (lambda r: r.rank(["i1"], ["i2", {"text": "x"}, {"text": "x"}]), "2 of them distinct"),
        (lambda r: r.prompt(["i1"], ["i2", "i2"]), "1 of them distinct"),
    ],
)
def test_wrong_input_is_refused(recommender, call, words):
    with pytest.raises(ValueError, match=words):
        call(recommender)


def test_no_histories_no_results(recommender):
    assert recommender.recommend([]) == []


def test_a_ranker_without_weight_is_not_called(recommender, test_rows, monkeypatch):
    _, histories, _ = test_rows
    monkeypatch.setattr(recommender.model, "fusion", Fusion({"verbalizer": 0.0}))
    monkeypatch.setattr(recommender.language_model, "scores", None)
    (result,) = recommender.recommend(histories[:1], 12)
    assert [item.retriever_rank for item in result] == list(range(1, 13))
    assert all(item.score is None and item.probability is None for item in result)


# --- the command ---------------------------------------------------------------------------------


def test_titles_are_resolved(recommender):
    title = recommender.model.item_texts[3]
    token = str(recommender.tokens[3])
    assert resolve(recommender, token) == token
    assert resolve(recommender, title) == resolve(recommender, title.upper()) == token
    with pytest.raises(ValueError, match="No item is called 'xyz'"):
        resolve(recommender, "xyz")
    with pytest.raises(ValueError, match="nearest: The"):
        resolve(recommender, "The Red Bird")


def test_years_and_articles_may_be_left_out(recommender, monkeypatch):
    titles = ["", "Godfather, The (1972)", "Heat (1995)", "Heat (1986)", "Solo (II)"]
    monkeypatch.setattr(recommender.model, "item_texts", titles)
    assert resolve(recommender, "Godfather") == str(recommender.tokens[1])
    assert resolve(recommender, "heat (1995)") == str(recommender.tokens[2])
    with pytest.raises(ValueError, match="several items"):
        resolve(recommender, "Heat")
    assert resolve(recommender, "Solo (II)") == str(recommender.tokens[4])


def test_the_command_prints_a_table_or_lines(recommender, trained, capsys):
    start = [f"--checkpoint={trained.checkpoint}", f"--data-path={trained.data_path}"]
    start += ["--history", "i1", "i2"]
    recommend.main([*start, "-k=3"])
    assert capsys.readouterr().out.count("\n| ") == 3
    recommend.main([*start, "-k=3", "--format=jsonl"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = recommender.recommend([["i1", "i2"]], 3)[0]
    assert [line["item"] for line in lines[-3:]] == [item.item for item in expected]
    for k, n_rows in ([], 12), (["-k=1"], 1):
        recommend.main([*start, *k, "--candidates", *(f"i{n}" for n in range(12))])
        assert capsys.readouterr().out.count("\n| ") == n_rows
    with pytest.raises(SystemExit, match="has no item|No item"):
        recommend.main([*start[:2], "--history", "nothing at all"])


@dataclass(frozen=True)
class Batch:
    """The files of one command ``recommend --histories … --out …``."""

    checkpoint: Path
    histories: Path
    out: Path

    def run(self, recommender, k: int = 3) -> bytes:
        results = ResultsFile(self.out, self.checkpoint, self.histories, k, recommend.BATCH)
        recommend.recommend_file(recommender, self.histories, results, k)
        return self.out.read_bytes()

    @property
    def about(self) -> Path:
        return self.out.with_name("out.jsonl.run.json")


@pytest.fixture
def files(tmp_path, trained, monkeypatch) -> Batch:
    """Seven histories, of which three are ranked at a time."""
    monkeypatch.setattr(recommend, "BATCH", 3)
    batch = Batch(trained.checkpoint, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    histories = [[f"i{n}", *(f"i{n + m}" for m in range(1, n + 2))] for n in range(7)]
    batch.histories.write_text("".join(json.dumps(history) + "\n" for history in histories))
    return batch


def test_a_file_of_histories_is_resumed_to_the_same_bytes(recommender, files):
    whole = files.run(recommender)
    assert whole.count(b"\n") == 7
    ends = [n + 1 for n, byte in enumerate(whole) if byte == ord("\n")]
    for length in (0, 5, ends[0], ends[2], ends[3] + 40, ends[5], ends[6] - 1, ends[6]):
        files.out.write_bytes(whole[:length])
        assert files.run(recommender) == whole
    files.out.unlink()  # killed before it was made
    assert files.run(recommender) == whole


def test_a_complete_file_is_left_as_it_is(recommender, files):
    whole = files.run(recommender)
    before = files.out.stat().st_mtime_ns
    results = ResultsFile(files.out, files.checkpoint, files.histories, 3, recommend.BATCH)
    assert (results.n_done, results.n_histories) == (7, 7)
    assert files.run(recommender) == whole
    assert files.out.stat().st_mtime_ns == before


@pytest.mark.parametrize("content", ["", "notes of mine", "notes\nof mine\n", '[{"item": 1}]\n'])
def test_a_file_that_is_not_its_own_is_not_touched(content, recommender, files):
    files.out.write_text(content)
    with pytest.raises(ValueError, match="is not touched: .*would say what it holds, is missing"):
        files.run(recommender)
    assert files.out.read_text() == content
    assert not files.about.exists()


@pytest.mark.parametrize("added", ["notes of mine", "notes of mine\n", "[]\n", '[{"item": "x"}]\n'])
def test_lines_that_are_no_results_are_not_touched(added, recommender, files):
    whole = files.run(recommender)
    for content in (added.encode(), whole[:300] + b"\n", whole + added.encode()):
        files.out.write_bytes(content)
        with pytest.raises(ValueError, match="is no result of 3 items"):
            files.run(recommender)
        assert files.out.read_bytes() == content
    files.out.write_bytes(whole + whole)
    with pytest.raises(ValueError, match="more lines than the 7 histories"):
        files.run(recommender)
    assert files.out.read_bytes() == whole + whole


def test_another_run_is_not_mixed_in(recommender, files, tmp_path):
    whole = files.run(recommender)
    about = files.about.read_bytes()
    other = tmp_path / "other.pth"
    other.write_bytes(b"other weights")
    with pytest.raises(ValueError, match=r"holds another run \(k 3 there, 4 here\)"):
        files.run(recommender, k=4)
    with pytest.raises(ValueError, match="checkpoint_sha256"):
        replace(files, checkpoint=other).run(recommender)
    with files.histories.open("a") as histories:
        histories.write('["i1"]\n')
    with pytest.raises(ValueError, match="histories_sha256"):
        files.run(recommender)
    files.about.write_text("{}")
    with pytest.raises(ValueError, match="does not say of what it is"):
        files.run(recommender)
    files.about.write_text("notes")
    with pytest.raises(ValueError, match="cannot be read"):
        files.run(recommender)
    assert files.about.read_text() == "notes"
    files.about.write_bytes(about)
    assert files.out.read_bytes() == whole


def test_the_command_writes_no_file_that_it_reads(trained, files, tmp_path):
    before = files.histories.read_bytes()
    link = tmp_path / "link.jsonl"
    link.symlink_to(files.histories)
    for out in (files.histories, link):
        with pytest.raises(SystemExit, match="--out and --histories are the same file"):
            command(trained.checkpoint, files.histories, out)
    with pytest.raises(SystemExit, match="--out and --checkpoint are the same file"):
        command(trained.checkpoint, files.histories, trained.checkpoint)
    with pytest.raises(SystemExit, match="folder .* does not exist"):
        command(trained.checkpoint, files.histories, tmp_path / "none" / "out.jsonl")
    with pytest.raises(SystemExit, match="--histories: .* is no file"):
        command(trained.checkpoint, tmp_path / "none", files.out)
    assert files.histories.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [files.histories, link]


def command(checkpoint: Path, histories: Path, out: Path) -> None:
    recommend.main(
        [f"--checkpoint={checkpoint}", f"--histories={histories}", f"--out={out}", "-k=3"]
    )


def test_what_fails_at_once_leaves_nothing_behind(recommender, files):
    with pytest.raises(ValueError, match="k is 0"):
        files.run(recommender, k=0)
    assert not files.out.exists() and not files.about.exists()
    assert files.run(recommender).count(b"\n") == 7


def test_a_full_disk_leaves_what_is_there_and_the_next_run_goes_on(recommender, files):
    whole = files.run(recommender)
    third = [n + 1 for n, byte in enumerate(whole) if byte == ord("\n")][2]
    files.out.write_bytes(whole[:third])
    with files_of_at_most(third + 100), pytest.raises(OSError, match="--out: .*out.jsonl' cannot"):
        files.run(recommender)
    assert files.out.read_bytes()[:third] == whole[:third]
    assert files.run(recommender) == whole


def test_a_file_that_appears_meanwhile_is_not_touched(recommender, files):
    results = ResultsFile(files.out, files.checkpoint, files.histories, 3, recommend.BATCH)
    files.out.write_text("notes of mine")
    with pytest.raises(ValueError, match="was not there a moment ago"):
        recommend.recommend_file(recommender, files.histories, results, 3)
    assert files.out.read_text() == "notes of mine"


def test_no_histories_leave_an_empty_file(recommender, files):
    files.histories.write_text("")
    assert files.run(recommender) == b""


def test_a_bad_line_is_named_before_anything_is_ranked(recommender, files):
    lines = files.histories.read_bytes().splitlines(keepends=True)
    for line, words in [(b'["i1", "nix"]\n', "has no item 'nix'"), (b'["i1\xff"]\n', "UTF-8")]:
        files.histories.write_bytes(b"".join([*lines[:5], line, *lines[6:]]))
        with pytest.raises(ValueError, match=f"in.jsonl, line 6: .*{words}"):
            files.run(recommender)
        assert not files.out.exists()
    files.histories.write_bytes(b"".join(lines).rstrip(b"\n"))
    assert files.run(recommender).count(b"\n") == 7


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--histories=in.jsonl", "--out=o", "--workers=2"], "--workers is of --engine ray"),
        (["--history=i1", "--ray-address=auto"], "--ray-address is of --engine ray"),
        (["--histories=in.parquet", "--out=o"], "folders and Parquet are read by --engine ray"),
        (["--histories=.", "--out=o"], "folders and Parquet are read by --engine ray"),
        (["--history=i1", "--engine=ray"], "--engine ray ranks --histories"),
        (["--history=i1", "-k=0"], "-k is 0; it must be 1 or more"),
    ],
)
def test_options_go_with_their_engine(more, words, capsys):
    with pytest.raises(SystemExit):
        recommend.parse_arguments(["--checkpoint=a.pth", *more])
    assert words in capsys.readouterr().err


def test_both_engines_give_the_same_bytes(recommender, files, trained, monkeypatch):
    """What a worker of Ray does with a shard, in this process."""
    whole = files.run(recommender)
    monkeypatch.setattr(recommend, "import_ray", lambda: None)
    monkeypatch.setattr(results_folder, "BATCH", 3)

    def rank_here(folder, load, workers, address):
        assert (workers, address) == (Workers(2, 1.0, 0.5), "here:1")
        for name in folder.pending:
            folder.rank(name, load())

    monkeypatch.setattr(recommend, "recommend_shards", rank_here)
    options = [f"--checkpoint={trained.checkpoint}", f"--data-path={trained.data_path}", "-k=3"]
    options += [f"--histories={files.histories}", f"--out={files.out.parent / 'shards'}"]
    options += ["--engine=ray", "--workers=2", "--gpus-per-worker=0.5", "--ray-address=here:1"]
    recommend.main(options)
    assert (files.out.parent / "shards" / "in.jsonl").read_bytes() == whole
    monkeypatch.setattr(recommend, "recommend_shards", None)  # nothing is left to do
    recommend.main(options)


def test_without_ray_the_command_says_what_to_install(trained, files, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.data", None)
    options = [f"--checkpoint={trained.checkpoint}", f"--histories={files.histories}"]
    with pytest.raises(SystemExit, match=r'pip install "ray\[data,tune\]>=2\.60"'):
        recommend.main([*options, "--out=out", "--engine=ray"])
