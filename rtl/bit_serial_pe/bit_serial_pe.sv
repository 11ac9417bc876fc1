// One processing element: the dot product of LANES activations with one bit-serial term of LANES weights per
// cycle, accumulated over a group and multiplied, bit by bit, with the group's scale (BitMoD, HPCA'25, IV-B).
//
//   stage 1  exponents  e[l] = act + term where both are non-zero, else the lane is off;  emax, distances
//   stage 2  sum of the lanes: significands with GUARD bits below them, shifted right by emax - e[l]
//            (towards zero), signed, added exactly
//   stage 3  group accumulator += sum with EXTRA zeros below it, at the greater exponent (align_add)
//
// At the end of a group (load_i) the accumulator moves on, so that the next group can start. Then, for each
// scale bit, the most significant first: product = 2 * product + (bit ? value : 0), which is exact in
// ACC_WIDTH + 8 bits. Draining shifts product, exponent and overflow along the column, one row per cycle.
//
// en_i holds stages 1 to 3. Significands come one cycle after the signs and exponents of their lanes.
`default_nettype none

module bit_serial_pe #(
    parameter int LANES     = 4,
    parameter int GUARD     = 3,
    parameter int EXTRA     = 2,
    parameter int ACC_WIDTH = 26
) (
    input  wire                    clk_i,
    input  wire                    en_i,
    input  wire  [      LANES-1:0] act_sign_i,
    input  wire  [    LANES*5-1:0] act_exponent_i,
    input  wire  [      LANES-1:0] act_nonzero_i,
    input  wire  [   LANES*11-1:0] act_significand_i,  // one cycle later
    input  wire  [      LANES-1:0] term_sign_i,
    input  wire  [    LANES*4-1:0] term_exponent_i,
    input  wire  [      LANES-1:0] term_mantissa_i,
    input  wire                    first_i,            // stage 3: the first term of a group
    input  wire                    take_i,             // stage 3: a term is there, and en_i
    input  wire                    load_i,             // stage 3: it is the group's last
    input  wire                    dequant_i,
    input  wire                    scale_bit_i,
    input  wire                    shift_i,
    input  wire  [ACC_WIDTH+8-1:0] product_i,          // of the next row
    input  wire  [            5:0] exponent_i,
    input  wire                    overflow_i,
    output logic [ACC_WIDTH+8-1:0] product_o,
    output logic [            5:0] exponent_o,
    output logic                   overflow_o
);

  localparam int SumWidth = 12 + GUARD + $clog2(LANES);

  // -- stage 1: exponents ----------------------------------------------------------------------------
  logic [LANES-1:0] on;
  logic [LANES*6-1:0] exponent, distance;
  logic [5:0] emax;
  assign on = act_nonzero_i & term_mantissa_i;
  for (genvar l = 0; l < LANES; l++) begin : g_exponent
    assign exponent[l*6+:6] = on[l] ? 6'(act_exponent_i[l*5+:5]) + 6'(term_exponent_i[l*4+:4]) : 6'd0;
    assign distance[l*6+:6] = emax - exponent[l*6+:6];
  end
  always_comb begin
    emax = 6'd0;
    for (int l = 0; l < LANES; l++) if (exponent[l*6+:6] > emax) emax = exponent[l*6+:6];
  end

  logic [LANES-1:0] on_q, sign_q;
  logic [LANES*6-1:0] distance_q;
  logic [5:0] emax1_q, emax2_q;
  always_ff @(posedge clk_i) begin
    if (en_i) begin
      on_q <= on;
      sign_q <= act_sign_i ^ term_sign_i;
      distance_q <= distance;
      emax1_q <= emax;
      emax2_q <= emax1_q;
    end
  end

  // -- stage 2: align and add ------------------------------------------------------------------------
  logic [LANES*SumWidth-1:0] aligned;
  for (genvar l = 0; l < LANES; l++) begin : g_align
    logic [10+GUARD:0] magnitude;
    logic [SumWidth-1:0] positive;
    assign magnitude = {act_significand_i[l*11+:11], {GUARD{1'b0}}} >> distance_q[l*6+:6];
    assign positive = on_q[l] ? SumWidth'(magnitude) : '0;
    assign aligned[l*SumWidth+:SumWidth] = sign_q[l] ? -positive : positive;
  end

  logic [SumWidth-1:0] sum, sum_q;
  always_comb begin
    sum = '0;
    for (int l = 0; l < LANES; l++) sum = sum + aligned[l*SumWidth+:SumWidth];
  end
  always_ff @(posedge clk_i) begin
    if (en_i) sum_q <= sum;
  end

  // -- stage 3: accumulate over the group --------------------------------------------------------------
  logic signed [SumWidth+EXTRA-1:0] addend;
  logic [ACC_WIDTH-1:0] acc_q, acc;
  logic [5:0] acc_exponent_q, acc_exponent;
  logic acc_overflow_q, acc_overflow, beyond;
  assign addend = {sum_q, {EXTRA{1'b0}}};
  align_add #(
      .WIDTH(ACC_WIDTH)
  ) u_accumulate (
      .a_i         (first_i ? '0 : acc_q),
      .a_exponent_i(first_i ? '0 : acc_exponent_q),
      .b_i         (ACC_WIDTH'(addend)),
      .b_exponent_i(emax2_q),
      .sum_o       (acc),
      .exponent_o  (acc_exponent),
      .beyond_o    (beyond)
  );
  assign acc_overflow = beyond || (acc_overflow_q && !first_i);

  always_ff @(posedge clk_i) begin
    if (take_i) begin
      acc_q <= acc;
      acc_exponent_q <= acc_exponent;
      acc_overflow_q <= acc_overflow;
    end
  end

  // -- dequantise bit by bit, then drain ---------------------------------------------------------------
  logic [ACC_WIDTH-1:0] value_q;
  always_ff @(posedge clk_i) begin
    if (load_i) value_q <= acc;
    if (load_i) begin
      product_o  <= '0;
      exponent_o <= acc_exponent;
      overflow_o <= acc_overflow;
    end else if (dequant_i) begin
      product_o <= {product_o[ACC_WIDTH+6:0], 1'b0} + (scale_bit_i ? {{8{value_q[ACC_WIDTH-1]}}, value_q} : '0);
    end else if (shift_i) begin
      product_o  <= product_i;
      exponent_o <= exponent_i;
      overflow_o <= overflow_i;
    end
  end

endmodule

`default_nettype wire
