// An array of ROWS x COLS conventional multiply-accumulate elements: binary16 products, binary32 sums.
//
// Rows hold activation vectors, columns hold outputs: element (r, c) computes, output stationary,
//
//   sum[r][c] = sum over k of  act[r][k] * weight[c][k]
//
// LANES products in every cycle. Products are exact. With LANES = 1 the product is added to the accumulator as a
// fused multiply-add does. With more, products are aligned to the greatest exponent among those that are not zero
// (exponent: the sum of the operands' own, subnormals' being 1), with GUARD bits kept below the products' own, cut towards
// zero, and added exactly. The accumulator is a binary32 number: it is normalised and rounded to nearest, ties to
// even, once in every cycle, and starts at +0; so a sum of zero is +0. Subnormal operands are exact. Infinity and
// NaN follow IEEE 754: inf * 0 and inf - inf are NaN, which is always 7FC00000.
//
//   act_i      ROWS x LANES binary16 numbers, row 0 and lane 0 lowest
//   weight_i   COLS x LANES binary16 numbers, column 0 and lane 0 lowest
//   last_i     the beat ends the dot product
//   sum_o      COLS binary32 numbers: a row of results, row 0 first
//
// Underflow and overflow: none. Every term is a multiple of 2^-48, and so is every sum: far above binary32's least
// normal number, 2^-126. The terms of a cycle are below 2^35 together, and the accumulator stays where it is once
// that is less than half a unit in its last place, which is so from 2^59 on: far below 2^128. So exponents take 7
// bits inside; those of binary32 are made where a row leaves.
//
// Timing: valid/ready on both sides; a beat per cycle. The last beat's results are offered 3 cycles after it is
// taken, 4 with LANES > 1, a row per cycle, while the next dot product goes in; only when that one ends before all
// rows have left does the array wait. ready_o depends on registers only. Reset is synchronous.
`default_nettype none
`include "check.svh"

module fp16_mac #(
    parameter int ROWS     = 8,  // activation vectors, 1 to 64
    parameter int COLS     = 8,  // outputs, 1 to 64
    parameter int LANES    = 1,  // products per element and cycle: 1, 2, 4, 8
    parameter int GUARD    = 3,  // bits below the products when lanes are aligned, 0 to 8
    parameter int FRACTION = 10  // bits of the operands' fractions: 10 binary16, 2 FP8 (E5M2); 2 to 10
) (
    input  wire                                clk_i,
    input  wire                                rst_ni,
    input  wire                                valid_i,
    output logic                               ready_o,
    input  wire  [ROWS*LANES*(FRACTION+6)-1:0] act_i,
    input  wire  [COLS*LANES*(FRACTION+6)-1:0] weight_i,
    input  wire                                last_i,
    output logic                               valid_o,
    input  wire                                ready_i,
    output logic [                COLS*32-1:0] sum_o
);

  // The words are those of cycles.py; a test holds them equal.
  if (ROWS < 1 || ROWS > 64) begin : g_check_rows
    `TOKENFAB_STOP(ROWS, "fp16_mac: ROWS must be from 1 to 64")
  end
  if (COLS < 1 || COLS > 64) begin : g_check_cols
    `TOKENFAB_STOP(COLS, "fp16_mac: COLS must be from 1 to 64")
  end
  if (LANES != 1 && LANES != 2 && LANES != 4 && LANES != 8) begin : g_check_lanes
    `TOKENFAB_STOP(LANES, "fp16_mac: LANES must be 1, 2, 4 or 8")
  end
  if (GUARD < 0 || GUARD > 8) begin : g_check_guard
    `TOKENFAB_STOP(GUARD, "fp16_mac: GUARD must be from 0 to 8")
  end

  if (FRACTION < 2 || FRACTION > 10) begin : g_check_fraction
    `TOKENFAB_STOP(FRACTION, "fp16_mac: FRACTION must be from 2 to 10")
  end

  localparam int Width = FRACTION + 6;  // of an operand
  localparam int Significand = FRACTION + 1;
  localparam int Depth = LANES == 1 ? 2 : 3;  // register stages before the accumulator
  localparam int Offset = LANES == 1 ? 65 : 66 + $clog2(LANES);  // from exponents inside to those of binary32
  localparam int CountWidth = ROWS > 1 ? $clog2(ROWS) : 1;

  // -- control -------------------------------------------------------------------------------------------
  logic [Depth-1:0] valid_q, last_q;
  logic en, take, load, step, first_q;
  logic [CountWidth-1:0] left_q;  // rows still to leave after this one
  assign en = !(valid_q[Depth-1] && last_q[Depth-1] && valid_o);
  assign take = valid_q[Depth-1] && en;
  assign load = take && last_q[Depth-1];
  assign step = valid_o && ready_i;
  assign ready_o = en;

  always_ff @(posedge clk_i) begin
    if (!rst_ni) begin
      valid_q <= '0;
      first_q <= 1'b1;
      valid_o <= 1'b0;
    end else begin
      if (en) valid_q <= {valid_q[Depth-2:0], valid_i};
      if (take) first_q <= last_q[Depth-1];
      if (load) valid_o <= 1'b1;
      else if (step && left_q == '0) valid_o <= 1'b0;
    end
    if (en) last_q <= {last_q[Depth-2:0], last_i};
    if (load) left_q <= CountWidth'(ROWS - 1);
    else if (step) left_q <= left_q - CountWidth'(1);
  end

  // -- rows: activations, decoded at the edge of the array -----------------------------------------------
  for (genvar r = 0; r < ROWS; r++) begin : g_row
    logic [LANES*Width-1:0] act_q;
    logic [LANES-1:0] sign, zero, infinite, not_a_number;
    logic [LANES*6-1:0] exponent;
    logic [LANES*Significand-1:0] significand;
    always_ff @(posedge clk_i) if (valid_i && en) act_q <= act_i[r*LANES*Width+:LANES*Width];
    for (genvar l = 0; l < LANES; l++) begin : g_lane
      assign sign[l] = act_q[l*Width+Width-1];
      fp16_decoder #(
          .FRACTION (FRACTION),
          .NORMALISE(LANES == 1 ? 1 : 0)
      ) u_decoder (
          .number_i     (act_q[l*Width+:Width-1]),
          .exponent_o   (exponent[l*6+:6]),
          .significand_o(significand[l*Significand+:Significand]),
          .zero_o       (zero[l]),
          .inf_o        (infinite[l]),
          .nan_o        (not_a_number[l])
      );
    end
  end

  // -- columns: weights likewise, and the elements -----------------------------------------------------------
  for (genvar c = 0; c < COLS; c++) begin : g_col
    logic [LANES*Width-1:0] weight_q;
    logic [LANES-1:0] sign, zero, infinite, not_a_number;
    logic [LANES*6-1:0] exponent;
    logic [LANES*Significand-1:0] significand;
    always_ff @(posedge clk_i) if (valid_i && en) weight_q <= weight_i[c*LANES*Width+:LANES*Width];
    for (genvar l = 0; l < LANES; l++) begin : g_lane
      assign sign[l] = weight_q[l*Width+Width-1];
      fp16_decoder #(
          .FRACTION (FRACTION),
          .NORMALISE(LANES == 1 ? 1 : 0)
      ) u_decoder (
          .number_i     (weight_q[l*Width+:Width-1]),
          .exponent_o   (exponent[l*6+:6]),
          .significand_o(significand[l*Significand+:Significand]),
          .zero_o       (zero[l]),
          .inf_o        (infinite[l]),
          .nan_o        (not_a_number[l])
      );
    end

    logic [(ROWS+1)*31-1:0] drain;
    assign drain[ROWS*31+:31] = '0;
    for (genvar r = 0; r < ROWS; r++) begin : g_element
      fp16_element #(
          .FRACTION(FRACTION),
          .LANES   (LANES),
          .GUARD   (GUARD)
      ) u_element (
          .clk_i,
          .en_i                (en),
          .act_sign_i          (fp16_mac.g_row[r].sign),
          .act_exponent_i      (fp16_mac.g_row[r].exponent),
          .act_significand_i   (fp16_mac.g_row[r].significand),
          .act_zero_i          (fp16_mac.g_row[r].zero),
          .act_inf_i           (fp16_mac.g_row[r].infinite),
          .act_nan_i           (fp16_mac.g_row[r].not_a_number),
          .weight_sign_i       (sign),
          .weight_exponent_i   (exponent),
          .weight_significand_i(significand),
          .weight_zero_i       (zero),
          .weight_inf_i        (infinite),
          .weight_nan_i        (not_a_number),
          .first_i             (first_q),
          .take_i              (take),
          .load_i              (load),
          .shift_i             (step),
          .drain_i             (drain[(r+1)*31+:31]),
          .drain_o             (drain[r*31+:31])
      );
    end

    // -- a result as binary32 -----------------------------------------------------------------------------
    logic is_zero, special, is_nan;
    logic [7:0] field;
    assign is_zero = drain[29:23] == '0;
    assign special = drain[29:23] == '1;
    assign is_nan = special && drain[22];
    assign field = special ? 8'hFF : is_zero ? 8'h00 : 8'(drain[29:23]) + 8'(Offset);
    assign sum_o[c*32+:32] = {drain[30] && !is_nan, field, drain[22], special ? 22'b0 : drain[21:0]};
  end

endmodule

`default_nettype wire
