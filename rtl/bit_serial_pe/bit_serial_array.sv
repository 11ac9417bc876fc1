// An array of ROWS x COLS bit-serial processing elements for low-bit weights of mixed types (BitMoD, HPCA'25).
//
// Rows hold activation vectors, columns hold outputs: element (r, c) computes, output stationary,
//
//   sum[r][c] = sum over groups g of  scale[g][c] * sum over k in g of  act[r][k] * weight[c][k]
//
// A beat brings LANES activations to every row and LANES weights to every column. Weights go in as terms,
// one per cycle, so a beat lasts 2 (INT4, FP3, FP4), 3 (INT5, INT6) or 4 (INT8) cycles.
//
//   act_i      ROWS x LANES activations of 16 bits, row 0 and lane 0 lowest: FP16, or INT8 when int8_i
//   weight_i   COLS x LANES codes of 8 bits; format_i, special_i (2 bits per column): see weight_encoder.sv
//   scale_i    COLS scales, 0 .. 255; those of the beat that ends a group count
//   group_i    the beat ends a group;  last_i: it ends the dot product, and so its last group
//
// Results come row by row, row 0 first; of row r and column c
//
//   sum[r][c] = sum_o[c] * 2^(exponent_o[c] - 26 - GUARD - EXTRA)      sum_o signed
//
// and overflow_o[c] says that a group's or the column's accumulator met a bound, invalid_o that the row's
// activations held an infinity or a NaN, which counted as 0. What is rounded, and where: bit_serial_pe.sv
// and align_add.sv. Nothing is with INT8 activations, since 3 + GUARD + EXTRA >= 8.
//
// Timing: valid/ready on both sides; beats follow one another without a gap. A group's scale and the sum of
// columns take 9 + ROWS cycles in the shadow of the next group; only when that one ends sooner does the
// array wait. ready_o depends on registers only. Reset is synchronous.
`default_nettype none
`include "check.svh"

module bit_serial_array #(
    parameter int ROWS      = 8,   // activation vectors, 1 to 64
    parameter int COLS      = 8,   // outputs, 1 to 64
    parameter int LANES     = 4,   // products per element and cycle: 1, 2, 4, 8
    parameter int GUARD     = 3,   // bits below the significands when lanes are aligned, 1 to 8
    parameter int EXTRA     = 2,   // bits below those in the accumulators
    parameter int ACC_WIDTH = 26,  // accumulator of a group, saturating
    parameter int SUM_WIDTH = 48   // accumulator of a column and output, saturating
) (
    input  wire                        clk_i,
    input  wire                        rst_ni,
    input  wire                        valid_i,
    output logic                       ready_o,
    input  wire  [  ROWS*LANES*16-1:0] act_i,
    input  wire                        int8_i,
    input  wire  [   COLS*LANES*8-1:0] weight_i,
    input  wire  [                2:0] format_i,
    input  wire  [         COLS*2-1:0] special_i,
    input  wire  [         COLS*8-1:0] scale_i,
    input  wire                        group_i,
    input  wire                        last_i,
    output logic                       valid_o,
    input  wire                        ready_i,
    output logic [ COLS*SUM_WIDTH-1:0] sum_o,
    output logic [         COLS*6-1:0] exponent_o,
    output logic [           COLS-1:0] overflow_o,
    output logic                       invalid_o
);

  // The words are those of cycles.py; a test holds them equal.
  if (ROWS < 1 || ROWS > 64) begin : g_check_rows
    `TOKENFAB_STOP(ROWS, "bit_serial_pe: ROWS must be from 1 to 64")
  end
  if (COLS < 1 || COLS > 64) begin : g_check_cols
    `TOKENFAB_STOP(COLS, "bit_serial_pe: COLS must be from 1 to 64")
  end
  if (LANES != 1 && LANES != 2 && LANES != 4 && LANES != 8) begin : g_check_lanes
    `TOKENFAB_STOP(LANES, "bit_serial_pe: LANES must be 1, 2, 4 or 8")
  end
  if (GUARD < 1 || GUARD > 8) begin : g_check_guard
    `TOKENFAB_STOP(GUARD, "bit_serial_pe: GUARD must be from 1 to 8")
  end
  if (EXTRA < 1 || EXTRA > 16 || GUARD + EXTRA < 5) begin : g_check_extra
    `TOKENFAB_STOP(EXTRA, "bit_serial_pe: EXTRA must be from 1 to 16, and GUARD + EXTRA at least 5")
  end
  if (ACC_WIDTH > 48 || ACC_WIDTH < 12 + GUARD + EXTRA + $clog2(LANES)) begin : g_check_acc_width
    `TOKENFAB_STOP(ACC_WIDTH, "bit_serial_pe: ACC_WIDTH must be from 12 + GUARD + EXTRA + log2(LANES) to 48")
  end
  if (SUM_WIDTH > 64 || SUM_WIDTH < ACC_WIDTH + 8) begin : g_check_sum_width
    `TOKENFAB_STOP(SUM_WIDTH, "bit_serial_pe: SUM_WIDTH must be from ACC_WIDTH + 8 to 64")
  end

  localparam int ProductWidth = ACC_WIDTH + 8;
  localparam int CountWidth = ROWS > 8 ? $clog2(ROWS) : 3;

  // -- stage 0: the beat and its terms -----------------------------------------------------------------
  logic en;  // of stages 0 to 3
  logic have_q, first_q, group_q, last_q;
  logic [2:0] format_q;
  logic [1:0] term_q, term_end;
  logic take, beat_end;
  assign term_end = format_q[2] ? 2'd1 : format_q[1:0] == 2'd3 ? 2'd3 : format_q[1:0] == 2'd0 ? 2'd1 : 2'd2;
  assign beat_end = term_q == term_end;
  assign ready_o = en && (!have_q || beat_end);
  assign take = valid_i && ready_o;

  logic begins_q;  // the next beat begins a group
  always_ff @(posedge clk_i) begin
    if (!rst_ni) begin
      have_q   <= 1'b0;
      begins_q <= 1'b1;
    end else if (take) begin
      have_q   <= 1'b1;
      begins_q <= group_i || last_i;
    end else if (en && beat_end) begin
      have_q <= 1'b0;
    end
    if (take) begin
      first_q  <= begins_q;
      group_q  <= group_i || last_i;
      last_q   <= last_i;
      format_q <= format_i;
      term_q   <= 2'd0;
    end else if (en) begin
      term_q  <= term_q + 2'd1;
      first_q <= 1'b0;
    end
  end

  // -- what goes with the terms through the stages; names end in the stage -----------------------------
  logic valid1_q, valid2_q, first1_q, first2_q, group1_q, group2_q, last1_q, last2_q;
  always_ff @(posedge clk_i) begin
    if (!rst_ni) begin
      valid1_q <= 1'b0;
      valid2_q <= 1'b0;
    end else if (en) begin
      valid1_q <= have_q;
      valid2_q <= valid1_q;
    end
    if (en) begin
      first1_q <= first_q;
      first2_q <= first1_q;
      group1_q <= group_q && beat_end;
      group2_q <= group1_q;
      last1_q  <= last_q;
      last2_q  <= last1_q;
    end
  end

  // -- a group's end: eight cycles of scale bits, then one row per cycle to the column accumulators -------
  logic busy_q, draining_q, ends_q, opens_q;  // ends, opens: the dot product's last, its first group
  logic [CountWidth-1:0] count_q;
  logic load, step, dequant;
  assign en = !(valid2_q && group2_q && busy_q);
  assign load = valid2_q && group2_q && !busy_q;
  assign dequant = busy_q && !draining_q;
  assign step = draining_q && (!valid_o || ready_i);

  always_ff @(posedge clk_i) begin
    if (!rst_ni) begin
      busy_q <= 1'b0;
      draining_q <= 1'b0;
      opens_q <= 1'b1;
      valid_o <= 1'b0;
    end else begin
      if (load) begin
        busy_q <= 1'b1;
      end else if (dequant && count_q == CountWidth'(7)) begin
        draining_q <= 1'b1;
      end else if (step && count_q == CountWidth'(ROWS - 1)) begin
        busy_q <= 1'b0;
        draining_q <= 1'b0;
        opens_q <= ends_q;
      end
      if (step) valid_o <= ends_q;
      else if (ready_i) valid_o <= 1'b0;
    end
    if (load || (dequant && count_q == CountWidth'(7))) count_q <= '0;
    else if (dequant || step) count_q <= count_q + CountWidth'(1);
    if (load) ends_q <= last2_q;
  end

  // -- rows: activations, decoded at the edge of the array ---------------------------------------------
  logic [ROWS-1:0] invalid_group;
  for (genvar r = 0; r < ROWS; r++) begin : g_row
    logic [LANES-1:0] sign, nonzero, invalid, sign_q, nonzero_q;
    logic [LANES*5-1:0] exponent, exponent_q;
    logic [LANES*11-1:0] significand, significand0_q, significand1_q;
    for (genvar l = 0; l < LANES; l++) begin : g_lane
      activation_decoder u_decoder (
          .act_i        (act_i[(r*LANES+l)*16+:16]),
          .int8_i,
          .sign_o       (sign[l]),
          .exponent_o   (exponent[l*5+:5]),
          .significand_o(significand[l*11+:11]),
          .nonzero_o    (nonzero[l]),
          .invalid_o    (invalid[l])
      );
    end

    logic invalid0_q, invalid1_q, invalid2_q, invalid3_q;
    assign invalid_group[r] = invalid2_q || (invalid3_q && !first2_q);
    always_ff @(posedge clk_i) begin
      if (take) begin
        sign_q <= sign;
        nonzero_q <= nonzero;
        exponent_q <= exponent;
        significand0_q <= significand;
        invalid0_q <= |invalid;
      end
      if (en) begin
        significand1_q <= significand0_q;
        invalid1_q <= invalid0_q;
        invalid2_q <= invalid1_q;
      end
      if (valid2_q && en) invalid3_q <= invalid_group[r];
    end
  end

  // -- columns: weights become terms, which all rows of a column share -----------------------------------
  for (genvar c = 0; c < COLS; c++) begin : g_col
    logic [LANES*8-1:0] weight_q;
    logic [1:0] special_q;
    logic [7:0] scale0_q, scale1_q, scale2_q, scale3_q;
    always_ff @(posedge clk_i) begin
      if (take) begin
        weight_q  <= weight_i[c*LANES*8+:LANES*8];
        special_q <= special_i[c*2+:2];
        scale0_q  <= scale_i[c*8+:8];
      end
      if (en) begin
        scale1_q <= scale0_q;
        scale2_q <= scale1_q;
      end
      if (load) scale3_q <= scale2_q;
      else if (dequant) scale3_q <= {scale3_q[6:0], 1'b0};
    end

    logic [LANES-1:0] sign, mantissa;
    logic [LANES*4-1:0] exponent;
    for (genvar l = 0; l < LANES; l++) begin : g_lane
      weight_encoder u_encoder (
          .code_i    (weight_q[l*8+:8]),
          .format_i  (format_q),
          .special_i (special_q),
          .term_i    (term_q),
          .sign_o    (sign[l]),
          .exponent_o(exponent[l*4+:4]),
          .mantissa_o(mantissa[l])
      );
    end

    logic [(ROWS+1)*ProductWidth-1:0] product;
    logic [(ROWS+1)*6-1:0] drain_exponent;
    logic [ROWS:0] drain_overflow;
    assign product[ROWS*ProductWidth+:ProductWidth] = '0;
    assign drain_exponent[ROWS*6+:6] = '0;
    assign drain_overflow[ROWS] = 1'b0;
    for (genvar r = 0; r < ROWS; r++) begin : g_row
      bit_serial_pe #(
          .LANES    (LANES),
          .GUARD    (GUARD),
          .EXTRA    (EXTRA),
          .ACC_WIDTH(ACC_WIDTH)
      ) u_pe (
          .clk_i,
          .en_i             (en),
          .act_sign_i       (bit_serial_array.g_row[r].sign_q),
          .act_exponent_i   (bit_serial_array.g_row[r].exponent_q),
          .act_nonzero_i    (bit_serial_array.g_row[r].nonzero_q),
          .act_significand_i(bit_serial_array.g_row[r].significand1_q),
          .term_sign_i      (sign),
          .term_exponent_i  (exponent),
          .term_mantissa_i  (mantissa),
          .first_i          (first2_q),
          .take_i           (valid2_q && en),
          .load_i           (load),
          .dequant_i        (dequant),
          .scale_bit_i      (scale3_q[7]),
          .shift_i          (step),
          .product_i        (product[(r+1)*ProductWidth+:ProductWidth]),
          .exponent_i       (drain_exponent[(r+1)*6+:6]),
          .overflow_i       (drain_overflow[r+1]),
          .product_o        (product[r*ProductWidth+:ProductWidth]),
          .exponent_o       (drain_exponent[r*6+:6]),
          .overflow_o       (drain_overflow[r])
      );
    end

    column_accumulator #(
        .ROWS     (ROWS),
        .WIDTH    (ProductWidth),
        .SUM_WIDTH(SUM_WIDTH)
    ) u_column (
        .clk_i,
        .step_i    (step),
        .first_i   (opens_q),
        .product_i (product[ProductWidth-1:0]),
        .exponent_i(drain_exponent[5:0]),
        .overflow_i(drain_overflow[0]),
        .sum_o     (sum_o[c*SUM_WIDTH+:SUM_WIDTH]),
        .exponent_o(exponent_o[c*6+:6]),
        .overflow_o(overflow_o[c])
    );
  end

  // -- the rows' invalid flags turn round with the partial sums ------------------------------------------
  logic [ROWS-1:0] invalid_drain_q, invalid_q;
  logic invalid;
  assign invalid = invalid_drain_q[0] || (invalid_q[0] && !opens_q);
  always_ff @(posedge clk_i) begin
    if (load) invalid_drain_q <= invalid_group;
    else if (step) invalid_drain_q <= invalid_drain_q >> 1;
    if (step) invalid_q <= ROWS'({invalid, invalid_q} >> 1);
  end
  assign invalid_o = invalid_q[ROWS-1];

endmodule

`default_nettype wire
