"""The script for a GPU, where there is none: its parts exist and fit into its time, and what is
measured is kept whatever ends a part.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gpu import failures, run
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import flop_counter

from adaptok.evaluation.bench import vision
from adaptok.evaluation.bench.timing import FULL, digits, saved, unless_full, write_results
from adaptok.evaluation.cost import operation_counter
from benchmarks import reducers, step
from benchmarks.drawing import bars


def test_the_parts_exist_and_leave_the_last_one_time(tmp_path):
    found = run.parts(tmp_path)
    *before, _ = (limit for _, limit in found.values())
    assert run.SECONDS <= 9 * 60
    assert sum(before) + run.LEAST <= run.SECONDS - run.SLACK
    modules = [command[2] for command, _ in found.values()]
    assert [module for module in modules if find_spec(module) is None] == []


def test_parts_share_the_time_and_the_summary_counts_their_rows(tmp_path, monkeypatch):
    out, limits = tmp_path / "out", []
    monkeypatch.setattr(run, "parts", lambda _: {"a": (["x"], 9), "b": (["x"], 900)})

    def ended(command: list[str], limit: float, log: Path) -> str:
        limits.append(limit)
        saved(out / log.stem, "own", [{"ms": 1}, {"ms": 2}])
        return "ok"

    monkeypatch.setattr(run, "run_part", ended)
    run.main(out, 100)
    content = json.loads((out / "summary.json").read_text())
    assert {"device", "hardware", "torch", "when"} <= {*content["machine"]}
    rows = [(row["part"], row["result"], row["rows"]) for row in content["rows"]]
    assert rows == [("a", "ok", 2), ("b", "ok", 2)]
    assert limits[0] == 9
    assert limits[1] <= 80  # of 100 seconds, and the slack stays
    assert "| b " in (out / "summary.md").read_text()
    with tarfile.open(tmp_path / "out.tar.gz") as archive:
        names = {name for name in archive.getnames() if archive.getmember(name).isfile()}
    assert names == {"out/a/own.json", "out/b/own.json", "out/summary.json", "out/summary.md"}
    with pytest.raises(ValueError, match="results of another run"):
        run.main(out)
    run.main(tmp_path / "late", run.SLACK)
    late = json.loads((tmp_path / "late" / "summary.json").read_text())["rows"]
    assert [row["result"] for row in late] == ["no time left"] * 2
    assert (tmp_path / "late.tar.gz").exists()
    shutil.rmtree(out)
    with pytest.raises(ValueError, match="results of another run"):
        run.main(out)  # would replace the archive


def test_each_number_of_tokens_is_a_part(tmp_path):
    found = run.parts(tmp_path)
    assert {"step_am_1024", "step_am_4096", "step_sne_4096"} <= {*found}
    words = found["step_am_4096"][0][3:]
    options = step.arguments(words)
    assert (options.tokens, options.name, options.channels) == ([4096], "am", 44)
    assert str(options.folder) == str(tmp_path / "step_am_4096")
    assert step.arguments(found["step_sne_4096"][0][3:]).dim == 432  # what follows the tokens


def test_files_without_rows_count_as_none(tmp_path):
    saved(tmp_path, "own", [{"ms": 1}])
    for number, text in enumerate(("[1, 2]", "{}", '{"rows": 3}', "{", "")):
        (tmp_path / f"{number}.json").write_text(text)
    (tmp_path / "binary.json").write_bytes(b"\xff")
    (tmp_path / "folder.json").mkdir()
    assert run.rows_in(tmp_path) == 1


def test_a_part_ends_at_its_limit_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "theirs")
    log = tmp_path / "log"
    assert run.run_part(["sh", "-c", "sleep 1000 & sleep 1000"], 0.5, log) == "stopped after 0 s"
    assert run.run_part(["sh", "-c", "echo $PYTHONPATH; exit 3"], 100, log) == "exit status 3"
    assert log.read_text().strip().split(":") == [
        *map(str, (run.HERE, run.HERE / "experiments")),
        "theirs",
    ]
    assert run.run_part([sys.executable, "-c", ""], 100, log) == "ok"


def test_a_failure_is_shown_at_once(capsys):
    failures.pytest_runtest_logreport(
        SimpleNamespace(failed=True, nodeid="test_x", longreprtext="1 != 2")
    )
    failures.pytest_runtest_logreport(SimpleNamespace(failed=False, nodeid="test_y"))
    assert capsys.readouterr().out == "\nFAILED test_x\n1 != 2\n"


def test_rows_are_kept_when_a_later_one_fails(tmp_path):
    def rows():
        yield {"model": "small", "ms": 1.5}
        raise RuntimeError

    with pytest.raises(RuntimeError):
        saved(tmp_path, "own", rows())
    content = json.loads((tmp_path / "own.json").read_text())
    assert content["rows"] == [{"model": "small", "ms": 1.5}]
    assert [file.name for file in tmp_path.iterdir()] == ["own.json"]


def test_a_row_says_that_memory_ran_out(tmp_path, drawn):
    def measure():
        raise torch.OutOfMemoryError

    assert unless_full(measure) is None
    assert unless_full(lambda: 3) == 3
    rows = [{"model": "small", "ms": 1.5}, {"model": "large"} | FULL]
    text = write_results(tmp_path, "own", rows, "", bars(None, "model", "ms")).read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["model", "ms", "remark"] in rows
    assert ["large", "", "out of memory"] in rows


@pytest.mark.parametrize(("number", "name"), [(1, "plain ViT"), (3, "iap, linear")])
def test_a_model_without_room_costs_only_its_own_row(number, name, monkeypatch):
    def peak(model, call, field, real=step.peak):
        seen.append(model)
        if len(seen) == number:
            raise torch.OutOfMemoryError
        return real(model, call, field)

    seen: list[torch.nn.Module] = []
    monkeypatch.setattr(step, "peak", peak)
    small = ["--device", "cpu", "--dim", "24", "--depth", "1", "--heads", "2", "--repeats", "1"]
    options = step.arguments([*small, "--max-size", "8"])
    rows = {row["model"]: row for row in step.measure([16, 32], 32, ["linear"], options)}
    assert [model for model, row in rows.items() if "remark" in row] == [name]
    assert rows["uniform, linear"]["ms"] > 0
    assert (rows["uniform, linear"]["time / plain ViT"] == "") == (name == "plain ViT")


def test_memory_on_a_device_is_that_of_the_step(monkeypatch):
    """What was there before does not count, such as weights."""
    held = iter([100 * 2**20])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: next(held))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 350 * 2**20)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    model = torch.nn.Linear(2, 2)
    place = SimpleNamespace(device=torch.device("cuda"))
    assert step.peak(model, lambda: model(torch.ones(2)).sum().backward(), place) == 250
    assert model.weight.grad is None


def test_three_digits_of_what_is_short_and_long():
    assert [digits(x) for x in (0.0012345, 1.2345, 1234.5)] == [0.00123, 1.23, 1230.0]


def test_benchmarks_load_nothing_that_takes_seconds():
    words = "benchmarks.step, benchmarks.attention, benchmarks.scaling, benchmarks.tokenize"
    slow = "{'lightning', 'transformers', 'matplotlib'}"
    command = [sys.executable, "-c", f"import sys, {words}; print(*{slow} & {{*sys.modules}})"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=run.HERE)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_the_counter_knows_varlen_attention_where_torch_does_not(monkeypatch):
    from torch.nn.attention.varlen import varlen_attn

    ops = torch.ops.torch_attn
    for op in (ops._varlen_attn, ops._varlen_attn_backward):
        monkeypatch.delitem(flop_counter.flop_registry, op, raising=False)
    ends = torch.tensor([0, 3, 8])
    packed = [torch.empty(8, 2, 16, device="meta") for _ in range(6)]
    with operation_counter() as counter:
        known = counter.flop_registry
        ahead = known[ops._varlen_attn](*packed[:3], ends, ends, 5, 5, out_val=None)
        back = known[ops._varlen_attn_backward](*packed, ends, ends, 5, 5, False, None)
    product = 2 * (3 * 3 + 5 * 5) * 2 * 16
    assert (ahead, back) == (2 * product, 5 * product)
    with FakeTensorMode(), operation_counter() as counter:
        q, k, v = (torch.empty(8, 2, 16, requires_grad=True) for _ in "qkv")
        ends = torch.empty(3, dtype=torch.int32)  # unknown lengths count as the longest
        varlen_attn(q, k, v, ends, ends, 4, 4).sum().backward()
    assert counter.get_total_flops() == 7 * 2 * (4 * 4 + 4 * 4) * 2 * 16


@pytest.fixture
def checks(monkeypatch):
    """The dtype and the exactness of convolutions at each comparison of two ways to compute."""
    pytest.importorskip("timm")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen, real = [], torch.testing.assert_close

    def compared(some, *others, **options):
        seen.append((some.dtype, torch.backends.cudnn.allow_tf32))
        real(some, *others, **options)

    monkeypatch.setattr(torch.testing, "assert_close", compared)
    return seen


def test_timms_logits_are_compared_in_single_precision_before_a_model_is_cast(checks):
    options = {"shares": (), "repeats": 1, "dtype": torch.bfloat16}
    rows = vision.measure("vit_tiny_patch16_224", 64, 1, **options)
    assert next(rows)["kept"] == 1
    assert checks == [(torch.float32, False)]
    assert torch.backends.cudnn.allow_tf32


def test_reducers_are_compared_in_single_precision(checks, monkeypatch):
    small = {"MODEL": "vit_tiny_patch16_224", "SIDE": 224, "REMOVED": (4,), "BATCH": 1}
    for name, value in small.items():
        monkeypatch.setattr(reducers, name, value)
    assert [row["r"] for row in reducers.measure(1)] == [0, 4]
    assert checks == [(torch.float32, False)]
