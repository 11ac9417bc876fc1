"""Are the constants earned? Reading, fitting and residuals on planted data; the catalogue's digits on measured data."""

from __future__ import annotations

import csv
import gzip
import re
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from tokenfab.errors import InputError
from tokenfab.hw.devices import load_device
from tokenfab.hw.spec import Quantity
from tokenfab.validation import intervals, moe, power, roofline
from tokenfab.validation.kernels import FOLDERS, SUITES, Kernels, joined, read_kernels

ROOT = Path(__file__).resolve().parents[1]
CARD = "a100-80g-sxm"
PLANTED = roofline.Constants(compute=0.62, memory=0.81, launch_s=7.3e-6)
GEMM = ["gemm_dtype", "m", "n", "k", "latency"]
ATTENTION = [
    "batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim", "window_size", "attn_dtype", "kv_cache_dtype",
    "step", "latency",
]  # fmt: skip


def write(path: Path, columns: list[str], rows: list[list[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def synthetic(card: str, noise: float = 0.0, n: int = 400) -> Kernels:
    """Kernels of all sizes that obey the roofline with the planted constants, times ``noise`` up and down in turn."""
    rng = np.random.default_rng(0)
    flops, moved = 10 ** rng.uniform(8, 13, n), 10 ** rng.uniform(5, 9.5, n)
    kernels = Kernels("synthetic", card, "planted", flops, moved, np.ones(n), 0)
    seconds = roofline.predict(kernels, PLANTED, card)[0] * np.where(rng.random(n) < 0.5, 1 - noise, 1 + noise)
    return Kernels("synthetic", card, "planted", flops, moved, seconds, 0)


# -- reading ---------------------------------------------------------------------------------------
def test_a_gemm_counts_two_flops_per_multiply_and_each_operand_once(tmp_path):
    rows = [
        ["bfloat16", 3, 5, 7, 2.0], ["fp8", 3, 5, 7, 1.0],  # another suite's
        ["bfloat16", 0, 5, 7, 1.0], ["bfloat16", 3, 5, 7, 0.0], ["bfloat16", 3, 5, 7, -1.0],  # cannot be true
    ]  # fmt: skip
    write(tmp_path / "aiconfigurator/a100_sxm/gemm/vllm_1.0/gemm_perf.csv.gz", GEMM, rows)
    found = read_kernels(tmp_path, CARD, "gemm-bf16")
    assert found.flops.tolist() == [2 * 3 * 5 * 7]
    assert found.bytes.tolist() == [2 * (3 * 7 + 7 * 5 + 3 * 5)]
    assert found.seconds.tolist() == [2e-3]
    assert found.dropped == 3
    assert found.source == "vllm_1.0/gemm_perf.csv.gz"


def test_prefill_attention_is_causal_and_reads_each_kv_head_once(tmp_path):
    rows = [
        [2, 10, 8, 4, 16, 0, "bfloat16", "bfloat16", 6, 1.0],
        [2, 10, 8, 4, 16, 128, "bfloat16", "bfloat16", 0, 1.0],
        [2, 10, 8, 4, 16, 0, "bfloat16", "fp8", 0, 1.0],
        [2, 0, 8, 4, 16, 0, "bfloat16", "bfloat16", 0, 1.0],
    ]
    write(tmp_path / "aiconfigurator/a100_sxm/attention/vllm_1.0/context_attention_perf.csv.gz", ATTENTION, rows)
    found = read_kernels(tmp_path, CARD, "attention-prefill")
    pairs = 10 * 6 + 10 * 11 / 2  # ten new queries after six cached keys
    assert found.flops.tolist() == [4 * 2 * 8 * 16 * pairs]
    assert found.bytes.tolist() == [2 * 2 * 16 * (2 * 8 * 10 + 2 * 4 * 16)]
    assert found.dropped == 1  # the windowed and the fp8 rows are other suites', the empty one cannot be true


def test_decode_attention_sees_prompt_and_step(tmp_path):
    rows = [[3, 1, 8, 2, 16, "", "bfloat16", "bfloat16", 63, 0.5]]
    write(tmp_path / "aiconfigurator/h100_sxm/attention/vllm_1.0/generation_attention_perf.csv.gz", ATTENTION, rows)
    found = read_kernels(tmp_path, "h100-sxm", "attention-decode")
    assert found.flops.tolist() == [4 * 3 * 8 * 16 * 64]
    assert found.bytes.tolist() == [2 * 3 * 16 * (2 * 8 + 2 * 2 * 64)]


@pytest.mark.parametrize("suite", SUITES)
def test_tables_that_are_not_there_are_told(tmp_path, suite):
    with pytest.raises(InputError, match=r"no vllm_\*/.* there; --truth or TOKENFAB_TRUTH names the folder"):
        read_kernels(tmp_path, CARD, suite)
    with pytest.raises(InputError, match=r"perf_model.csv: not there; --truth or TOKENFAB_TRUTH"):
        power.read_runs(tmp_path)


def test_halves_are_disjoint_and_join_to_the_whole():
    whole = synthetic(CARD, n=11)
    even, odd = whole.half(odd=False), whole.half(odd=True)
    assert (even.flops.size, odd.flops.size) == (6, 5)
    assert sorted([*even.flops, *odd.flops]) == sorted(whole.flops)
    both = joined([even, odd], "both")
    assert (both.seconds.size, both.source) == (11, "planted + planted")


# -- fitting ---------------------------------------------------------------------------------------
def test_a_fit_recovers_planted_constants():
    found = roofline.fit(synthetic(CARD), CARD)
    assert found.compute == pytest.approx(PLANTED.compute, rel=2e-3)
    assert found.memory == pytest.approx(PLANTED.memory, rel=2e-3)
    assert found.launch_s == pytest.approx(PLANTED.launch_s, rel=2e-3)
    exact = roofline.residuals(synthetic(CARD), PLANTED, CARD)
    assert exact.mape == pytest.approx(0, abs=1e-12)
    assert exact.quantiles["compute"][:2] == exact.quantiles["dram"][:2] == (pytest.approx(1), pytest.approx(1))


def test_residuals_report_planted_noise_as_quantiles_of_measured_over_predicted():
    found = roofline.residuals(synthetic(CARD, noise=0.1), PLANTED, CARD)
    assert found.n == 400
    for low, high, _ in found.quantiles.values():
        assert (low, high) == (pytest.approx(0.9), pytest.approx(1.1))
    assert sum(n for _, _, n in found.quantiles.values()) == 400
    assert 1 / 1.1 - 1 < -0.09 < found.mape < 1 / 0.9 - 1  # between the two errors that were planted


def test_the_power_fit_recovers_planted_watts_and_joules():
    rate = np.linspace(1e11, 1.6e12, 50)
    static, per_byte = power.fit(rate, 118 + rate * 1.47e-10)
    assert (static, per_byte) == (pytest.approx(118), pytest.approx(1.47e-10))


def test_the_commands_print_what_they_found(tmp_path, monkeypatch, capsys):
    """Both commands on a folder of planted measurements, the one card's twice as slow as its constants say."""
    rng = np.random.default_rng(1)
    for folder in FOLDERS.values():
        sizes = rng.integers(64, 8192, (60, 3))
        rows = [["bfloat16", m, n, k, 1e3 * (5e-6 + 2 * m * n * k / 1e14)] for m, n, k in sizes]
        write(tmp_path / f"aiconfigurator/{folder}/gemm/vllm_1.0/gemm_perf.csv.gz", GEMM, rows)
        rows = [
            [b, s, 32, 8, 128, 0, "bfloat16", "bfloat16", 0, 0.01 + 1e-9 * b * s * s] for b, s in sizes[:, :2] // 64 + 1
        ]
        for name in ("context", "generation"):
            write(
                tmp_path / f"aiconfigurator/{folder}/attention/vllm_1.0/{name}_attention_perf.csv.gz", ATTENTION, rows
            )
    monkeypatch.setattr("sys.argv", ["roofline", "--truth", str(tmp_path)])
    roofline.main()
    out = capsys.readouterr().out
    for family in roofline.FAMILIES:
        for card in FOLDERS:
            assert re.search(rf"^{family}: fitted on {card}: compute [\d.]+ memory [\d.]+ launch [\d.]+ us$", out, re.M)
    assert len(re.findall(r"n=30 MAPE [\d.]+%; 5\.\.95 %: ", out)) == 4 * 2 + 4 * 2  # joined attention has n=60


def test_the_power_command_prints_what_it_found(tmp_path, monkeypatch, capsys):
    card = load_device(power.DEVICE)
    columns = ["hardware", "prompt_size", "token_size", "batch_size", "average_power", "token_time", "tensor_parallel",
               "prompt_time", "peak_power"]  # fmt: skip
    rows = []
    trace = power.load_trace(power.MODEL)
    for world in (2, 4, 8):
        moved = power.tensor_parallel(trace, world).total("bytes")
        for batch in (1, 2, 8):
            watts = 100 + 20e-12 * 8 * float(moved(batch, 1, 512 + 64)) / 0.050
            rows.append(["a100-80gb", 512, 128, batch, watts / card.power.tdp.value, 50.0, world, 100.0, 0.9])
    rows += [
        ["h100-80gb", 512, 128, 1, 0.5, 50.0, 2, 100.0, 0.9],
        ["a100-80gb", 512, 128, 1, 0, 50.0, 2, 100.0, 0.9],
    ]  # another card; no reading
    rows += [["a100-80gb", 2048, 128, 1, 0.9, 50.0, 2, 100.0, 0.9]]  # its average mixes in the prompt phase
    (tmp_path / "splitwise").mkdir()
    with (tmp_path / "splitwise" / "perf_model.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    monkeypatch.setattr("sys.argv", ["power", "--truth", str(tmp_path)])
    power.main()
    out = capsys.readouterr().out
    assert out.startswith(
        "9 runs; static 100 W = 0.250 of TDP\n20.0 pJ per bit moved, of which DRAM 3.97, transport 16.0\n"
    )
    assert "held out (4 devices): n=3 MAPE 0.0%; measured/predicted 5..95 %: 1.000..1.000" in out


# -- the catalogue, on measured data -----------------------------------------------------------------
@pytest.fixture(scope="module")
def measured(truth) -> tuple[dict, dict]:
    """Constants by (family, card), and residuals of the odd rows by (family or suite, fitted on, reported on)."""
    constants, errors = {}, {}
    for family, suites in roofline.FAMILIES.items():
        parts = {card: [read_kernels(truth, card, s) for s in suites] for card in FOLDERS}
        for card in FOLDERS:
            constants[family, card] = roofline.fit(joined([k.half(odd=False) for k in parts[card]], family), card)
            for other in FOLDERS:
                odd = [k.half(odd=True) for k in parts[other]]
                for kernels in (*odd, joined(odd, family)):
                    errors[kernels.suite, card, other] = roofline.residuals(kernels, constants[family, card], other)
    return constants, errors


def agree(quantity: Quantity, computed: float) -> None:
    """``quantity`` is ``computed`` to its last printed digit."""
    number, _, unit = quantity.text.partition(" ")
    step = float(Decimal(1).scaleb(int(Decimal(number).as_tuple().exponent))) * quantity.value / float(number)
    assert abs(computed - quantity.value) <= step, (quantity.text, computed, unit)


def earned(card: str, command: str) -> dict[str, Quantity]:
    """Numbers of ``card`` whose source names the command that earns them."""
    return {key: q for key, q in load_device(card).quantities() if q.source.rstrip().endswith(f"tokenfab.{command}")}


@pytest.mark.slow
@pytest.mark.parametrize("card", FOLDERS)
def test_a_measured_cards_roofline_numbers_are_those_that_the_command_computes(measured, card):
    constants, errors = measured
    own: dict[str, float] = {}
    for family, c in ((f, constants[f, card]) for f in roofline.FAMILIES):
        names = ("attention_efficiency", "attention_memory_efficiency", "attention_launch")
        if family == "matmul":
            names = ("matmul_efficiency", "memory_efficiency", "launch")
        own |= {f"model.{n}": v for n, v in zip(names, (c.compute, c.memory, c.launch_s), strict=True)}
        for bound, (low, high, _) in errors[family, card, card].quantiles.items():
            own |= {f"intervals.{family}_{bound}.low": low, f"intervals.{family}_{bound}.high": high}
    found = earned(card, "validation.roofline")
    assert found, "no number of this card names the command; drop this test with the last of them"
    for key, quantity in found.items():
        agree(quantity, own[key])


@pytest.mark.slow
def test_intervals_of_a_card_nobody_measured_are_those_of_one_card_for_the_other(measured):
    _, errors = measured
    first, second = FOLDERS
    found = {k: q for k, q in earned("tpu-v5e", "validation.roofline").items() if k.startswith("intervals.")}
    assert found
    for key, quantity in found.items():
        regime, side = key.split(".")[1:]
        family, bound = regime.rsplit("_", 1)
        both = [errors[family, a, b].quantiles[bound][side == "high"] for a, b in ((first, second), (second, first))]
        agree(quantity, max(both) if side == "high" else min(both))


@pytest.mark.slow
def test_kernel_intervals_are_those_that_the_command_computes(truth):
    """A measured card's by family and regime; of a card nobody measured, the wider of both directions."""
    found = {
        (card, source): {
            family: intervals.earned(truth, card, family, errors) if card == source
            else errors.half(odd=False).quantiles()
            for family, errors in intervals.both(truth, card, source).items()
        }
        for card in FOLDERS for source in FOLDERS
    }  # fmt: skip
    first, second = FOLDERS
    for name in (*FOLDERS, "l4"):
        held = {k: q for k, q in earned(name, "validation.intervals").items() if "experts" not in k}
        assert len(held) == 2 * 2 * 3  # two families, two sides, three regimes
        for key, quantity in held.items():
            family, regime = key.split(".")[1].split("_")
            at = key.endswith("high")
            sources = [(name, name)] if name in FOLDERS else [(first, second), (second, first)]
            values = [found[pair][family][regime][at] for pair in sources]
            agree(quantity, max(values) if at else min(values))


def test_expert_intervals_are_those_that_the_command_computes(truth):
    """A measured card's by kernel; of a card nobody measured, the wider of both directions, 16 bits."""
    own = {
        (moe.SUITES[suite].device, name): intervals.experts_errors(truth, suite).half(odd=False).quantiles()[name]
        for suite, name in intervals.EXPERTS.items()
    }
    pair = ("bf16-a100", "bf16-h100")
    crossed = [
        intervals.experts_errors(truth, suite, moe.SUITES[source].constants).half(odd=False).quantiles()["experts"]
        for suite, source in (pair, pair[::-1])
    ]
    own["l4", "experts"] = (min(low for low, _ in crossed), max(high for _, high in crossed))
    for device in (*FOLDERS, "l4"):
        held = {k: q for k, q in earned(device, "validation.intervals").items() if "experts" in k}
        assert len(held) == 2 * sum(name == device for name, _ in own)
        for key, quantity in held.items():
            agree(quantity, own[device, key.split(".")[1]][key.endswith("high")])


def test_the_power_constants_are_those_that_the_command_computes(truth):
    world, rate, watts = power.read_runs(truth)
    fitted, card = world != 4, load_device(power.DEVICE)
    static, per_byte = power.fit(rate[fitted], watts[fitted])
    agree(card.model.static_share, static / card.power.tdp.value)
    agree(card.model.transport_energy, per_byte / 8 - card.dram.energy.value)
    ratio = watts[~fitted] / (static + per_byte * rate[~fitted])
    assert np.mean(np.abs(1 / ratio - 1)) == pytest.approx(0.041, abs=0.0005)  # the 4.1 % that the catalogue states
    interval = card.intervals["power"]
    agree(interval.high, np.quantile(ratio, 0.95))
    assert interval.low.value <= np.quantile(ratio, 0.05)


@pytest.mark.slow
def test_the_errors_in_the_docs_are_those_that_the_command_prints(measured):
    """Rows of the table in docs/roofline.md: ``| suite | fitted on | held out on | n | MAPE | 5 … 95 % |``."""
    _, errors = measured
    text = (ROOT / "docs" / "roofline.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| ([\w-]+) \| ([\w-]+) \| ([\d,]+) \| ([\d.]+) % \|", text, re.MULTILINE)
    rows = [row for row in rows if row[0] in SUITES]
    assert {(suite, on, by) for suite, by, on, *_ in rows} >= {(s, card, card) for s in SUITES for card in FOLDERS}
    for suite, fitted, reported, n, mape in rows:
        found = errors[suite, fitted, reported]
        assert int(n.replace(",", "")) == found.n
        assert float(mape) == pytest.approx(100 * found.mape, abs=0.051)
