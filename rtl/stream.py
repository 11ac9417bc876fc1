"""Beats from a file into a design, results into another: a C++ bench around Verilator, generic over units.

No Python runs in the loop, so a whole layer takes seconds. Both sides go at full rate: an input offers its next beat
as soon as the last was taken, and every result is taken. Protocol and X are the cocotb benches' business.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .flow import build_root, locked
from .layer import Bytes, Stream
from .simulators import check_simulator, prepare_environment
from .units import ROOM, Unit

PATIENCE = 5000
"""Cycles without a handshake after which a simulation ends: all is done, or the unit hangs."""
FAST = ("-O3", "-fno-dfg", "-fno-gate", "--x-assign", "fast", "--x-initial", "fast", "--output-split", "0",
        "-MAKEFLAGS", "OPT_FAST=-O1 OPT_SLOW=-O0 OPT_GLOBAL=-O0")  # fmt: skip
BENCH = """\
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <vector>
#include "V@TOP@.h"
#include "verilated.h"
double sc_time_stamp() { return 0; }
static std::vector<char> load(const char* name) {
    std::vector<char> all;
    char block[65536];
    FILE* in = fopen(name, "rb");
    for (size_t got; in && (got = fread(block, 1, sizeof block, in));) all.insert(all.end(), block, block + got);
    if (in) fclose(in);
    return all;
}
static std::vector<char> results;
static void get(const void* from, size_t size) {
    const size_t old = results.size();
    results.resize(old + (size + 3) / 4 * 4);
    memcpy(results.data() + old, from, size);
}
static size_t whole(size_t size) { return (size + 3) / 4 * 4; }
#define PUT(pin) memcpy(&top.pin, at, sizeof top.pin); at += whole(sizeof top.pin);
#define GET(pin) get(&top.pin, sizeof top.pin);
struct Input { std::vector<char> beats; size_t size, next; bool offering; };
// Arguments: file of results, a file of beats for every input.
int main(int argc, char** argv) {
    static V@TOP@ top;
    Input inputs[] = {@INPUTS@};
    for (int i = 0; i < @COUNT@; i++) {
        inputs[i].beats = load(argv[2 + i]);
        if (inputs[i].beats.size() % inputs[i].size) return 3;
    }
    top.ready_i = 1;
    for (int i = 0; i < 3; i++) {
        top.rst_ni = i == 2;
        @IDLE@
        top.clk_i = 0;
        top.eval();
        if (i < 2) { top.clk_i = 1; top.eval(); }
    }
    uint64_t cycle = 0, first = 0, last = 0, given = 0, moved = 0;
    bool begun = false;
    const clock_t start = clock();
    for (; cycle <= moved + @PATIENCE@; cycle++) {
        @DRIVE@
        top.clk_i = 0;
        top.eval();
        bool taken = false;
        @TAKE@
        if (taken && !begun) { begun = true; first = cycle; }
        if (top.valid_o) { @GET@ given++; last = cycle; }
        if (taken || top.valid_o) moved = cycle;
        top.clk_i = 1;
        top.eval();
    }
    uint64_t left = 0;
    for (const Input& input : inputs) left += (input.beats.size() - input.next) / input.size + input.offering;
    const uint64_t head[4] = {last - first + 1, given, left, uint64_t(1e9 * (clock() - start) / CLOCKS_PER_SEC)};
    top.final();
    FILE* out = fopen(argv[1], "wb");
    if (!out) return 4;
    const bool bad = fwrite(head, 8, 4, out) != 4 || fwrite(results.data(), 1, results.size(), out) != results.size();
    return fclose(out) || bad;
}
"""


@dataclass(frozen=True)
class Done:
    """``cycles`` from the first beat taken to the last result given, both counted; results, a row each, by pin."""

    cycles: int
    pins: Mapping[str, Bytes]
    cpu_s: float


def simulate(unit: Unit, parameters: Mapping[str, int], stream: Stream) -> Done:
    """Run ``stream`` through ``unit`` at full rate.

    Raises ``InputError`` when Verilator is missing, ``RuntimeError`` when the unit does not build with
    ``parameters``, when a pin has another width than the stream says, and unless all beats are taken and
    exactly ``stream.results`` results come.
    """
    check_simulator("verilator")
    prepare_environment()
    text = bench_text(unit, stream)
    texts = [p.read_text(encoding="utf-8") for p in (*unit.sources, *sorted(ROOM.glob("*.svh")))]
    key = hashlib.sha256(json.dumps([sorted(parameters.items()), texts, text, FAST]).encode()).hexdigest()[:16]
    folder = build_root() / unit.name / f"stream-{key}"
    with locked(folder):
        program = folder / "build" / f"V{unit.top}"
        if not program.is_file():
            _build(unit, parameters, text, folder)
        files = []
        for number, port in enumerate(stream.inputs):
            files.append(folder / f"beats-{number}.bin")
            files[-1].write_bytes(np.hstack(list(port.pins.values())).tobytes())
        out = folder / "results.bin"
        ran = subprocess.run([program, out, *files], timeout=600)
        if ran.returncode:
            raise RuntimeError(f"{unit.name}: the bench ended with {ran.returncode}")
        told = out.read_bytes()
        for file in (*files, out):
            file.unlink()
    cycles, given, left, cpu_ns = np.frombuffer(told, np.uint64, 4).tolist()
    if (given, left) != (stream.results, 0):
        raise RuntimeError(f"{unit.name}: {given} of {stream.results} results came; {left} beats were not taken")
    sizes = [-(-bits // 32) * 4 for bits in stream.outputs.values()]
    rows = np.frombuffer(told, np.uint8, offset=32).reshape(given, sum(sizes))
    return Done(
        cycles, dict(zip(stream.outputs, np.split(rows, np.cumsum(sizes)[:-1], axis=1), strict=True)), cpu_ns / 1e9
    )


def bench_text(unit: Unit, stream: Stream) -> str:
    """The C++ bench for the ports of ``stream``; a pin of another width does not compile."""
    starts, idle, drive, take = [], [], [], []
    checks = [f"static_assert((sizeof(V{unit.top}::{pin}) + 3) / 4 == {data.shape[1] // 4}, \"{pin}\");"
              for port in stream.inputs for pin, data in port.pins.items()]  # fmt: skip
    checks += [f"static_assert((sizeof(V{unit.top}::{pin}) + 3) / 4 == {-(-bits // 32)}, \"{pin}\");"
               for pin, bits in stream.outputs.items()]  # fmt: skip
    for i, port in enumerate(stream.inputs):
        size = sum(data.shape[1] for data in port.pins.values())
        starts.append(f"{{{{}}, {size}, 0, false}}")
        idle.append(f"top.{port.valid} = 0;")
        puts = " ".join(f"PUT({pin})" for pin in port.pins)
        drive.append(
            f"if (Input& in = inputs[{i}]; !in.offering && in.next < in.beats.size()) {{ const char* at ="
            f" in.beats.data() + in.next; {puts} in.next += in.size; in.offering = true; }}"
            f" top.{port.valid} = inputs[{i}].offering;"
        )
        take.append(f"if (inputs[{i}].offering && top.{port.ready}) {{ inputs[{i}].offering = false; taken = true; }}")
    filled = {
        "TOP": unit.top, "INPUTS": ", ".join(starts), "COUNT": len(starts), "IDLE": " ".join(idle),
        "DRIVE": "\n        ".join(drive), "TAKE": "\n        ".join(take),
        "GET": " ".join(f"GET({pin})" for pin in stream.outputs), "PATIENCE": PATIENCE,
    }  # fmt: skip
    text = BENCH
    for key, value in filled.items():
        text = text.replace(f"@{key}@", str(value))
    return text + "\n".join([*checks, ""])


def _build(unit: Unit, parameters: Mapping[str, int], text: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.cpp").write_text(text, encoding="utf-8")
    given = [f"-G{key}={value}" for key, value in parameters.items()]
    done = subprocess.run(
        ["verilator", "--cc", "--exe", "--build", "-Wno-fatal", *FAST, f"-I{ROOM}", *given,
         "--top-module", unit.top, "--Mdir", folder / "build", *unit.sources, "bench.cpp"],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(
            f"{unit.name} does not build with {dict(parameters)}:\n{(done.stdout + done.stderr)[-2000:]}"
        )
