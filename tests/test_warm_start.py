"""The warm start's command."""

from __future__ import annotations

import json

from recbole.quick_start import run_recbole

from recbole_llamarec import warm_start


def test_the_command_makes_an_adapter_that_a_run_starts_from(tiny_run, monkeypatch, workdir):
    import yaml

    settings = {k: v for k, v in tiny_run.items() if k not in ("model", "dataset")}
    (workdir / "run.yaml").write_text(yaml.safe_dump(settings | {"rerank_candidates": 20}))
    warm_start.main(
        ["--datasets", "tiny", "tiny", "--config_files", "run.yaml", "--steps=3", "--out=warm"]
    )
    record = json.loads((workdir / "warm" / "warm_start.json").read_text())
    assert record["steps"] == len(record["candidates_and_loss"]) == 3
    assert record["titles"] == 2 * 60
    assert (workdir / "warm" / "adapter_model.safetensors").is_file()
    result = run_recbole(config_dict=tiny_run | {"lora_adapter": str(workdir / "warm")})
    assert result["test_result"]
