"""How fast Verilator simulates the array: cycles per second of CPU time, checked against golden and cycle model.

    python -m tokenfab.rtl.bit_serial_pe.speed [ROWS [COLS [WEIGHT_FORMAT]]]

builds the array (16 x 16 unless told) with a C++ bench that reads all beats from one file and writes all
results into another, so that nothing but the array runs in the timed loop, which a Python bench would dominate.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ...kernels.bitserial import BITS, Quantised, Sums, Widths, bitserial_dot
from ..flow import build_root, locked
from ..simulators import check_simulator, prepare_environment
from ..units import ROOM, load_unit
from .cycles import cycles

FORMATS = ("int4", "int5", "int6", "int8", "fp3", "fp4")
"""Weight formats in the order of ``format_i``."""
INPUTS = ("act_i", "weight_i", "special_i", "scale_i", "int8_i", "format_i", "group_i", "last_i")
OUTPUTS = ("sum_o", "exponent_o", "overflow_o", "invalid_o")
BENCH = """\
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <vector>
#include "Vbit_serial_array.h"
#include "verilated.h"
double sc_time_stamp() { return 0; }
// beats.bin: two counts, then records of INPUTS; results.bin: cycles, CPU nanoseconds, records of OUTPUTS.
#define PUT(pin) memcpy(&top.pin, at, sizeof top.pin); at += (sizeof top.pin + 3) / 4 * 4;
#define GET(pin) put(&top.pin, sizeof top.pin);
static std::vector<char> results;
static void put(const void* from, size_t size) {
    const size_t old = results.size();
    results.resize(old + (size + 3) / 4 * 4);
    memcpy(results.data() + old, from, size);
}
int main(int argc, char** argv) {
    Verilated::commandArgs(argc, argv);
    FILE* in = fopen(argv[1], "rb");
    uint32_t counts[2];
    if (!in || fread(counts, 4, 2, in) != 2) return 1;
    std::vector<char> beats;
    char block[65536];
    for (size_t got; (got = fread(block, 1, sizeof block, in));) beats.insert(beats.end(), block, block + got);
    fclose(in);
    static Vbit_serial_array top;
    top.ready_i = 1;
    for (int i = 0; i < 3; i++) {
        top.rst_ni = i == 2;
        top.valid_i = 0;
        top.clk_i = 0;
        top.eval();
        if (i < 2) { top.clk_i = 1; top.eval(); }
    }
    const char* next = beats.data();
    uint32_t taken = 0, given = 0;
    bool offering = false;
    uint64_t cycles = 0;
    const clock_t start = clock();
    while (given < counts[1] && cycles < 100000000) {
        if (!offering && taken < counts[0]) {
            const char* at = next;
            @PUT@
            next = at;
            offering = true;
        }
        top.valid_i = offering;
        top.clk_i = 0;
        top.eval();
        if (offering && top.ready_o) { taken++; offering = false; }
        if (top.valid_o) { given++; @GET@ }
        top.clk_i = 1;
        top.eval();
        cycles++;
    }
    const uint64_t head[2] = {cycles, uint64_t(1e9 * (clock() - start) / CLOCKS_PER_SEC)};
    top.final();
    FILE* out = fopen(argv[2], "wb");
    const bool bad = fwrite(head, 8, 2, out) != 2 || fwrite(results.data(), 1, results.size(), out) != results.size();
    return fclose(out) || bad;
}
"""


def measure(rows: int = 16, cols: int = 16, format: str = "fp4", k: int = 2048) -> dict[str, Any]:
    """Simulate a product of 2 x 4 tiles and ``k`` inputs of FP16 in groups of 128.

    Returns ``cycles`` and ``cycles_model``, ``values_equal``, ``cpu_s`` of the loop, ``cycles_per_cpu_s``. Raises
    ``InputError`` when Verilator is missing or the arguments are not the unit's.
    """
    check_simulator("verilator")
    unit = load_unit("bit_serial_pe")
    parameters = unit.check({"ROWS": rows, "COLS": cols})
    shape = {"m": 2 * rows, "n": 4 * cols, "k": k, "group": 128}
    model = cycles(shape, {"weight": format, "activation": "fp16"}, parameters)
    rng = np.random.default_rng(1)
    acts = np.asarray(rng.standard_normal((shape["m"], k)), np.float16).view(np.uint16).astype(np.int64)
    groups = (shape["n"], -(-k // 128))
    special = rng.integers(0, 4, groups) * (format in ("fp3", "fp4"))
    codes = rng.integers(0, 1 << BITS[format], (shape["n"], k))
    weights = Quantised(codes, rng.integers(1, 256, groups), special, np.ones(shape["n"]), format, 128)
    folder = build_root() / unit.name / f"speed-{rows}-{cols}"
    with locked(folder):
        folder.mkdir(parents=True, exist_ok=True)
        program = _build(rows, cols)
        (folder / "beats.bin").write_bytes(_beats(acts, weights, rows, cols, parameters["LANES"]))
        subprocess.run([program, folder / "beats.bin", folder / "results.bin"], check=True, timeout=600)
        told = (folder / "results.bin").read_bytes()
    took, cpu_ns = np.frombuffer(told, np.uint64, 2).tolist()
    p = parameters
    widths = Widths(p["LANES"], p["GUARD"], p["EXTRA"], p["ACC_WIDTH"], p["SUM_WIDTH"])
    wanted = _results(bitserial_dot(acts, weights, widths=widths), rows, cols, p["SUM_WIDTH"])
    return {
        "rows": rows, "cols": cols, "format": format, "cycles": took, "cycles_model": model,
        "values_equal": told[16:] == wanted, "cpu_s": cpu_ns / 1e9, "cycles_per_cpu_s": took / (cpu_ns / 1e9),
    }  # fmt: skip


def _build(rows: int, cols: int) -> str:
    prepare_environment()
    unit = load_unit("bit_serial_pe")
    folder = build_root() / unit.name / f"speed-{rows}-{cols}"
    text = BENCH.replace("@PUT@", " ".join(f"PUT({pin})" for pin in INPUTS))
    text = text.replace("@GET@", " ".join(f"GET({pin})" for pin in OUTPUTS))
    (folder / "bench.cpp").write_text(text, encoding="utf-8")
    # Verilator would write every element out anew, megabytes that take minutes to compile and miss every cache.
    # Kept apart, and without optimisation over their borders, all elements share one function.
    parts = [f'no_inline -module "{path.stem}"' for path in unit.sources if path.stem not in (unit.top, "align_add")]
    (folder / "bench.vlt").write_text("\n".join(["`verilator_config", *parts, ""]), encoding="utf-8")
    done = subprocess.run(
        ["verilator", "--cc", "--exe", "--build", "-O3", "-fno-dfg", "-fno-gate", "--x-assign", "fast", "--x-initial",
         "fast", "-MAKEFLAGS", "OPT_FAST=-O2 OPT_SLOW=-O0", f"-I{ROOM}", f"-GROWS={rows}", f"-GCOLS={cols}",
         "--top-module", unit.top, "--Mdir", folder / "build", "bench.vlt", *unit.sources, "bench.cpp"],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the bench does not build:\n{(done.stdout + done.stderr)[-2000:]}")
    return str(folder / "build" / f"V{unit.top}")


def _words(values: npt.ArrayLike, width: int) -> bytes:
    """Words of ``width`` bits, the first lowest, in whole words of 32 bits."""
    given = np.atleast_1d(np.asarray(values, np.int64))
    bits: npt.NDArray[np.uint8] = (given[:, None] >> np.arange(width) & 1).astype(np.uint8).ravel()
    return np.packbits(np.pad(bits, (0, -len(bits) % 32)), bitorder="little").tobytes()


def _beats(acts: npt.NDArray[np.int64], weights: Quantised, rows: int, cols: int, lanes: int) -> bytes:
    """The file of beats; k is whole beats, and a group as well."""
    (m, k), n = acts.shape, weights.codes.shape[0]
    act = {(t, f): _words(acts[t : t + rows, f : f + lanes].ravel(), 16)
           for t in range(0, m, rows) for f in range(0, k, lanes)}  # fmt: skip
    code = {(t, f): _words(weights.codes[t : t + cols, f : f + lanes].ravel(), 8)
            for t in range(0, n, cols) for f in range(0, k, lanes)}  # fmt: skip
    beats = []
    for top in range(0, m, rows):
        for left in range(0, n, cols):
            for group in range(weights.scale.shape[1]):
                special = _words(weights.special[left : left + cols, group], 2)
                scale = _words(weights.scale[left : left + cols, group], 8)
                for first in range(group * 128, min(k, group * 128 + 128), lanes):
                    last, ends = first + lanes == k, first + lanes in (k, group * 128 + 128)
                    flags = (0, FORMATS.index(weights.format), ends, last)
                    tail = b"".join(int(v).to_bytes(4, "little") for v in flags)
                    beats.append(act[top, first] + code[left, first] + special + scale + tail)
    results = int(m // rows * (n // cols) * rows)
    return len(beats).to_bytes(4, "little") + results.to_bytes(4, "little") + b"".join(beats)


def _results(sums: Sums, rows: int, cols: int, width: int) -> bytes:
    """The file of results, as it must be."""
    found = []
    for top in range(0, sums.mantissa.shape[0], rows):
        for left in range(0, sums.mantissa.shape[1], cols):
            for r in range(top, top + rows):
                row = slice(left, left + cols)
                found += [_words(sums.mantissa[r, row], width), _words(sums.exponent[r, row], 6)]
                found += [_words(sums.overflow[r, row], 1), _words(sums.invalid[r], 1)]
    return b"".join(found)


def main(arguments: list[str]) -> int:
    """Print one line; 1 when a value or the number of cycles is wrong."""
    rows, cols, format = (arguments + ["16", "16", "fp4"][len(arguments) :])[:3]
    if not (rows.isdecimal() and cols.isdecimal() and format in FORMATS):
        raise InputError(f"wanted ROWS COLS and one of {', '.join(FORMATS)}; got {' '.join(arguments)}")
    found = measure(int(rows), int(cols), format)
    print(*(f"{key} {value:.5g}" if isinstance(value, float) else f"{key} {value}" for key, value in found.items()))
    return int(not found["values_equal"] or found["cycles"] != found["cycles_model"])


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        print(f"speed: {error}", file=sys.stderr)
        sys.exit(2)
