"""The serving room, part by part: sums of steps, KV memory, figures of a run, capacity, timeline, the command."""

from __future__ import annotations

import json
from bisect import bisect_right
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tokenfab.cli import app
from tokenfab.errors import InputError
from tokenfab.hw.devices import load_device
from tokenfab.serving.blocks import BlockPool
from tokenfab.serving.capacity import at_rate, capacity
from tokenfab.serving.cluster import Cluster
from tokenfab.serving.curves import Curve, knots
from tokenfab.serving.engine import EngineProfile, load_profile, profile_names
from tokenfab.serving.memory import kv_memory
from tokenfab.serving.metrics import energy_of, spread
from tokenfab.serving.pipeline import Pipeline
from tokenfab.serving.policies import parse_policy, policies
from tokenfab.serving.run import INTERVALS, parse_slo, serve, simulate
from tokenfab.serving.timeline import timeline
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.parallel import Parallel
from tokenfab.workloads.request_log import plain
from tokenfab.workloads.requests import parse_requests
from tokenfab.workloads.trace import Trace

runner = CliRunner()


@pytest.fixture(scope="module")
def small() -> Trace:
    return load_trace("opt-125m")


@pytest.fixture(scope="module")
def cluster(small: Trace) -> Cluster:
    return Cluster(small, load_device("a100-80g-sxm"), longest=2048)


# -- sums of steps -----------------------------------------------------------------------------------
def integral(curve: Curve, at: list[float], x: float) -> float:
    """∫ f up to ``x``, as the docstring of :class:`Curve` has it."""
    i = min(max(bisect_right(at, x) - 1, 0), curve.last)
    d = x - at[i]
    return curve.areas[i] + d * (curve.values[i] + curve.slopes[i] * d)


def test_a_straight_line_is_summed_exactly() -> None:
    at = [-1.0, 1000.0]
    curve = Curve(at, [3.0 - 0.25, 3.0 + 250.0])  # 3 + x / 4
    steps = integral(curve, at, 103.5) - integral(curve, at, 99.5)
    assert steps == pytest.approx(sum(3 + (100 + i) / 4 for i in range(4)))


@given(values=st.lists(st.floats(1e-6, 1e-1), min_size=6, max_size=6), low=st.floats(0, 128), high=st.floats(128, 250))
def test_the_integral_is_that_of_the_straight_lines(values: list[float], low: float, high: float) -> None:
    at = [-1.0, 16.0, 32.0, 64.0, 128.0, 256.0]
    curve = Curve(at, values)
    x = np.unique(np.concatenate([[low, high], [a for a in at if low < a < high]]))
    exact = float(np.trapezoid(np.interp(x, at, values), x))
    assert integral(curve, at, high) - integral(curve, at, low) == pytest.approx(exact, rel=1e-9, abs=1e-15)


def test_knots_reach_beyond_the_longest_context() -> None:
    for longest in (1, 100, 2048, 131072):
        at = knots(longest)
        assert at[0] == -1
        assert at[-1] > longest
        assert np.all(np.diff(at) > 0)


# -- memory --------------------------------------------------------------------------------------------
def test_blocks_are_what_weights_and_activations_leave() -> None:
    trace, device = load_trace("llama-2-7b"), load_device("a100-80g-sxm")
    found = kv_memory(trace, device, EngineProfile())
    token = 2 * 32 * 4096 * 2  # keys and values, layers, width, bytes
    assert found.token_bytes == token == 524288
    assert found.weights_bytes == trace.weights_bytes
    gated = 2048 * 2 * (2 * 11008 + 11008)  # operands of the gated activation: both halves, product; 16 bits
    assert found.activation_bytes == gated
    room = 0.9 * device.dram.usable - trace.weights_bytes - gated
    assert found.blocks == int(room // (16 * token))


def test_blocks_of_a_divided_model() -> None:
    trace, device = load_trace("llama-2-70b"), load_device("a100-80g-sxm")
    two = kv_memory(Cluster(trace, device, Parallel(tp=2)).steps().share, device, EngineProfile())
    assert two.token_bytes == 2 * 80 * 1024 * 2 / 2
    with pytest.raises(InputError, match="no room for a KV block: weights 137"):
        kv_memory(trace, device, EngineProfile())


def test_a_recorded_engine_has_its_blocks() -> None:
    """vLLM 0.19 with Llama-3.1-8B on a card of 24 GB resolved 2588 blocks of 16 tokens."""
    found = kv_memory(load_trace("llama-3-8b"), load_device("rtx-4090"), load_profile("vllm-0.19"))
    assert found.blocks == pytest.approx(2588, rel=0.005)


# -- engine profiles -------------------------------------------------------------------------------------
def test_profiles_say_where_numbers_come_from() -> None:
    for name in profile_names():
        profile = load_profile(name)
        assert profile.name == name
        assert profile.sources
        assert all(len(source) > 10 for source in profile.sources.values())


def test_padding_goes_to_the_next_captured_graph() -> None:
    profile = load_profile("vllm-0.19")
    assert [profile.padded(n) for n in (1, 3, 9, 512, 513)] == [1, 4, 16, 512, 513]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "x"\nblock = 16', 'block: expected { value = …, source = "…" }'),
        ('name = "x"\nblock = { value = 0, source = "s" }', "block: 0; accepted: 1 to 1024"),
        ('name = "x"\nblock = { value = 1.5, source = "s" }', "block: 1.5 is not a whole number"),
        ('name = "x"\nspeed = { value = 1, source = "s" }', "unknown key speed"),
        ('block = { value = 16, source = "s" }', "name is missing"),
        ('name = "x"\ngraphs = { value = [4, 2], source = "s" }', "graphs: expected ascending token counts"),
        ("name = ", "not TOML"),
    ],
)  # fmt: skip
def test_a_broken_profile_is_one_line(tmp_path, text: str, message: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "engine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message.replace("{", r"\{").replace("}", r"\}")):
        load_profile(str(path))


def test_overheads_add_up() -> None:
    hidden = EngineProfile(host_s=0.01, host_sequence_s=0.001, asynchronous=1, step_s=0.002, sequence_s=0.0001)
    assert hidden.iterations_s(0.5, 0, 4, 10) == pytest.approx(0.5 + 10 * (0.002 + 0.0004))
    assert hidden.iterations_s(0.05, 0, 4, 10) == pytest.approx(10 * (0.014 + 0.002 + 0.0004))
    open_ = replace(hidden, asynchronous=0, prompt_s=0.003, prompt_token_s=1e-5)
    assert open_.iterations_s(0.05, 100, 4, 1) == pytest.approx(0.05 + 0.014 + 0.0024 + 0.003 + 0.001)


# -- figures of a run --------------------------------------------------------------------------------------
@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9)), min_size=1, max_size=30))
def test_weighted_quantiles_are_those_of_the_repeated_sample(pairs: list[tuple[int, int]]) -> None:
    values, weights = (np.array(x, dtype=float) for x in zip(*pairs, strict=True))
    repeated = np.sort(np.repeat(values, weights.astype(int)))
    found = spread(values, weights)
    assert found["mean"] == pytest.approx(repeated.mean())
    for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        assert found[name] == repeated[int(np.ceil(q * repeated.size - 1e-9)) - 1]


def test_energy_is_the_sum_of_its_parts_and_power_its_rate(cluster: Cluster) -> None:
    log = parse_requests("poisson:rate=20,n=200,prompt=300,output=60", seed=1)
    simulation = simulate(log, cluster, "vllm")
    end = float(np.nanmax(simulation.outcome.finish_s))
    found = energy_of(simulation.replicas[0], end)
    assert found.total_j == pytest.approx(found.dynamic_j + found.static_j + found.idle_j)
    assert float(found.power_w.mean()) * end == pytest.approx(found.total_j, rel=1e-9)
    steps = simulation.replicas[0].steps
    assert found.static_j == pytest.approx(steps.static_w * found.busy_s)
    assert found.idle_j == pytest.approx(steps.idle_w * (end - found.busy_s))


def test_a_request_alone_is_a_prompt_and_its_steps(cluster: Cluster) -> None:
    simulation = simulate(plain(np.zeros(1), np.array([300]), np.array([50])), cluster, "vllm")
    steps, o = simulation.replicas[0].steps, simulation.outcome
    assert o.first_s[0] == pytest.approx(steps.mixed_s([(300, 0)], 1, 0, 0.0, 0.0))
    assert o.finish_s[0] - o.first_s[0] == pytest.approx(steps.decode_s(1, 300, 0.0, 49))


def test_figures_of_a_document_by_hand(cluster: Cluster) -> None:
    log = plain(np.array([0.0, 0.01, 5.0]), np.array([100, 200, 50]), np.array([10, 1, 4]), klass=np.array([0, 1, 1]),
                classes=("chat", "batch"))  # fmt: skip
    document, simulation = serve(log, cluster, "vllm", slo={"ttft": 1.0})
    o = simulation.outcome
    first, last, finish = (np.array(x) for x in (o.first_s, o.last_s, o.finish_s))
    assert document["requests"] == {"submitted": 3, "finished": 3, "rejected": 0}
    assert document["ttft_s"]["mean"] == pytest.approx((first - log.arrival_s).mean())
    assert document["tpot_s"]["mean"] == pytest.approx(((last - first)[[0, 2]] / [9, 3]).mean())
    assert document["throughput_tokens_per_s"] == pytest.approx(15 / finish.max())
    assert document["goodput_requests_per_s"] == pytest.approx(3 / finish.max())
    assert [c["class"] for c in document["classes"]] == ["chat", "batch"]
    assert document["classes"][1]["requests"] == 2
    for path in INTERVALS:
        low, high = document["interval"][".".join(path)]
        value = document
        for key in path:
            value = value[key]
        assert low <= value <= high
    assert sum(document["series"]["decoding"]) * document["series"]["bin_s"] == pytest.approx(
        sum(float((c.decoding * c.duration_s).sum()) for c in [simulation.replicas[0].runs.columns()]), rel=1e-3
    )


# -- pipelines ---------------------------------------------------------------------------------------------
def test_batches_pass_stages_one_after_another() -> None:
    pipeline = Pipeline(4)
    assert pipeline.enter(0.0, 4.0) == 4.0
    assert pipeline.enter(0.5, 4.0) == 5.0  # waits until the first has left stage 1
    assert pipeline.enter(10.0, 8.0) == 18.0
    assert pipeline.enter(10.0, 4.0) == 19.0  # caught up with the slower batch in every stage
    assert pipeline.work_s == 20.0


def test_a_pipeline_serves_more_than_its_stages_in_turn(small: Trace) -> None:
    log = plain(np.zeros(64), np.full(64, 128), np.full(64, 64))
    deep = Cluster(small, load_device("a100-80g-sxm"), Parallel(pp=4), longest=2048)
    document = serve(log, deep, "vllm", interval=False)[0]
    alone = serve(plain(np.zeros(1), np.array([128]), np.array([64])), deep, "vllm", interval=False)[0]
    assert document["requests"]["finished"] == 64
    assert document["throughput_tokens_per_s"] > 20 * alone["throughput_tokens_per_s"]
    assert alone["utilisation"]["busy"] == pytest.approx(0.25, abs=0.01)
    assert document["utilisation"]["devices"] == 4


# -- capacity ------------------------------------------------------------------------------------------------
def test_capacity_lies_between_a_rate_that_holds_and_one_that_does_not(cluster: Cluster) -> None:
    log = parse_requests("poisson:rate=30,n=150,prompt=400,output=40", seed=3)
    slo = {"ttft": 0.02, "tpot": 0.003}
    found = capacity(log, cluster, "vllm", slo, 0.9)
    attained = [
        serve(at_rate(log, rate), cluster, "vllm", slo=slo, interval=False)[0]["slo"]["attained"]
        for rate in (found.rate, found.next)
    ]
    assert attained[0] == found.attained >= 0.9 > attained[1]
    assert 1 < found.next / found.rate <= 1.01


def test_a_log_at_another_rate_has_it() -> None:
    log = parse_requests("poisson:rate=30,n=100,prompt=10,output=10", seed=3)
    assert at_rate(log, 7.5).rate == pytest.approx(7.5)


def test_limits_that_nothing_holds_are_one_line(cluster: Cluster) -> None:
    log = parse_requests("poisson:rate=30,n=5,prompt=400,output=4", seed=3)
    none = capacity(log, cluster, "vllm", {"ttft": 1e-6})
    assert (none.rate, none.attained) == (0.0, 0.0)
    assert "no rate holds" in none.note
    every = capacity(log, cluster, "vllm", {"tpot": 10.0})
    assert every.next is None
    assert "too few" in every.note
    with pytest.raises(InputError, match="needs limits"):
        capacity(log, cluster, "vllm", {})
    with pytest.raises(InputError, match="come at once"):
        capacity(plain(np.zeros(2), np.array([4, 4]), np.array([2, 2])), cluster, "vllm", {"ttft": 1.0})


# -- timeline --------------------------------------------------------------------------------------------------
def test_a_timeline_has_every_run_and_request(cluster: Cluster) -> None:
    log = parse_requests("poisson:rate=20,n=20,prompt=300,output=10", seed=1)
    simulation = simulate(log, cluster, "vllm")
    events = timeline(simulation)["traceEvents"]
    columns = simulation.replicas[0].runs.columns()
    slices = [e for e in events if e["ph"] == "X"]
    assert len(slices) == columns.start_s.size
    assert sum(e["dur"] for e in slices) == pytest.approx(columns.duration_s.sum() * 1e6)
    begins = {e["id"]: e["ts"] for e in events if e["ph"] == "b"}
    ends = {e["id"]: e["ts"] for e in events if e["ph"] == "e"}
    assert len(begins) == 20
    took = np.array([ends[i] - begins[i] for i in range(20)]) / 1e6
    assert took == pytest.approx(np.array(simulation.outcome.finish_s) - log.arrival_s)


# -- names, limits, the command ----------------------------------------------------------------------------------
def test_policies_are_found_and_described() -> None:
    assert {"vllm", "sarathi", "orca"} <= set(policies())
    for policy in policies().values():
        assert policy.description
        assert policy.source


@pytest.mark.parametrize(
    ("text", "message"),
    [("vlm", "unknown policy"), ("vllm:budgt=3", "unknown parameter of policy vllm"),
     ("vllm:order=lifo", "accepted: fcfs"), ("sarathi:chunk=0", "out of range")],
)  # fmt: skip
def test_bad_policies_are_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_policy(text)


def test_limits_of_goodput() -> None:
    assert parse_slo("ttft=0.5,tpot=0.05") == {"ttft": 0.5, "tpot": 0.05}
    for bad in ("ttft", "ttft=x", "ttft=-1", "speed=1", "ttft=1,ttft=2"):
        with pytest.raises(InputError, match="--slo"):
            parse_slo(bad)


PROMISED = {
    "requests", "ttft_s", "tpot_s", "e2e_s", "throughput_tokens_per_s", "goodput_requests_per_s", "energy_per_token_j",
    "kv_blocks", "preemptions", "simulated_s", "wall_s", "seed",
}  # fmt: skip


def test_the_command_prints_what_it_promises(tmp_path) -> None:  # type: ignore[no-untyped-def]
    line = [
        "serve", "-m", "opt-125m", "-d", "a100-80g-sxm", "--requests", "poisson:rate=20,n=50,prompt=100,output=20",
        "--slo", "ttft=0.5,tpot=0.05", "--seed", "7",
    ]  # fmt: skip
    result = runner.invoke(app, [*line, "--json", "--timeline", str(tmp_path / "t.json"), "--capacity", "0.9"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.output)
    assert set(document) >= PROMISED
    assert document["seed"] == 7
    assert document["kv_blocks"].keys() >= {"total", "peak"}
    assert document["capacity"]["rate"] > 20
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    again = json.loads(runner.invoke(app, [*line, "--json", "--capacity", "0.9"]).output)
    for key in document.keys() - {"wall_s", "command"}:
        assert again[key] == document[key]
    text = runner.invoke(app, line)
    assert "time to first token" in text.output
    assert "50 requests, 50 finished, 0 rejected" in text.output


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--policy", "vlm"], "unknown policy"),
        (["--slo", "ttft=fast"], "--slo"),
        (["--engine", "tgi"], "unknown engine"),
        (["--capacity", "0.9"], "needs limits"),
        (["--requests", "nothere.csv"], "nothere.csv"),
        (["--timeline", "pyproject.toml/x.json"], "pyproject.toml"),
    ],
)
def test_bad_input_is_one_line(changed: list[str], message: str) -> None:
    from tokenfab.cli import run

    line = {"--model": "opt-125m", "--device": "a100-80g-sxm", "--requests": "poisson:rate=2,n=5,prompt=10,output=5"}
    line |= dict(zip(changed[::2], changed[1::2], strict=True))
    import contextlib
    import io

    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        code = run(["serve", *[x for pair in line.items() for x in pair]])
    assert code == 2
    assert message in stderr.getvalue()
    assert len(stderr.getvalue().strip().splitlines()) == 1


def test_a_sequence_that_comes_back_takes_what_is_left_of_its_blocks() -> None:
    """Ten blocks: one leaves 7 whole ones behind, another takes 6, and three of the 7 go, from their end."""
    pool = BlockPool(10, 16)
    assert pool.take(7)
    assert pool.leave_behind(3, {}, 7 * 16 + 5) == 7
    assert (pool.held, pool.kept, pool.free) == (0, 7, 10)
    assert pool.left_behind(3, 0) == 7
    assert pool.take(6)
    assert (pool.held, pool.kept) == (6, 4)
    assert pool.left_behind(3, 0) == 4
    assert pool.left_behind(3, 3) == 1  # three of them have been found as a prefix since
    pool.claim(3, 4)
    assert (pool.held, pool.kept, pool.left_behind(3, 0)) == (10, 0, 0)


def test_who_waits_over_time_is_littles_law_and_blocks_are_held_on_average(cluster: Cluster) -> None:
    """A request that comes while another decodes waits for the end of a step, not since the run of steps began."""
    log = plain(np.array([0.0, 0.1234567]), np.array([64, 64]), np.array([1000, 1000]))
    document = serve(log, cluster, "vllm", interval=False)[0]
    series, end = document["series"], document["simulated_s"]
    waited = 2 * document["queue_s"]["mean"]
    assert waited > 0
    assert sum(series["waiting"]) * series["bin_s"] == pytest.approx(waited, rel=0.02)
    # 4 blocks at first, 67 at the end of each, linearly: 35.5 on average while it decodes.
    size, blocks = document["kv_blocks"]["block_tokens"], document["kv_blocks"]["total"]
    mean = (64 + 1063) / 2 / size + 0.5
    time = sum(document["e2e_s"]["mean"] - document["queue_s"]["mean"] for _ in range(2))
    assert document["kv_blocks"]["occupancy_mean"] * blocks * end == pytest.approx(mean * time, rel=0.02)
