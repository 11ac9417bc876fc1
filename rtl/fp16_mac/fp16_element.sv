// One element: a dot product of LANES binary16 numbers per cycle, accumulated, and its place in the column's drain.
//
// The first stage of the products is at the edge of the array. load_i: the sum is complete and goes to the drain
// register, so that the next dot product can start; shift_i moves the drain one row on.
`default_nettype none

module fp16_element #(
    parameter int FRACTION = 10,
    parameter int LANES    = 1,
    parameter int GUARD    = 3
) (
    input  wire                 clk_i,
    input  wire                 en_i,
    input  wire  [   LANES-1:0] act_sign_i,
    input  wire  [ LANES*6-1:0] act_exponent_i,
    input  wire  [LANES*(FRACTION+1)-1:0] act_significand_i,
    input  wire  [   LANES-1:0] act_zero_i,
    input  wire  [   LANES-1:0] act_inf_i,
    input  wire  [   LANES-1:0] act_nan_i,
    input  wire  [   LANES-1:0] weight_sign_i,
    input  wire  [ LANES*6-1:0] weight_exponent_i,
    input  wire  [LANES*(FRACTION+1)-1:0] weight_significand_i,
    input  wire  [   LANES-1:0] weight_zero_i,
    input  wire  [   LANES-1:0] weight_inf_i,
    input  wire  [   LANES-1:0] weight_nan_i,
    input  wire                 first_i,               // last stage: the first addend of a dot product
    input  wire                 take_i,                // last stage: an addend is there, and en_i
    input  wire                 load_i,                // last stage: it is the last one
    input  wire                 shift_i,
    input  wire  [        30:0] drain_i,               // of the next row
    output logic [        30:0] drain_o
);

  localparam int Width = 2 * FRACTION + 2 + (LANES == 1 ? 0 : GUARD + $clog2(LANES));

  logic sign;
  logic [6:0] exponent;
  logic [Width-1:0] significand;
  if (LANES == 1) begin : g_product
    fp16_product #(
        .FRACTION(FRACTION),
        .WIDTH   (Width)
    ) u_product (
        .*,
        .sign_o       (sign),
        .exponent_o   (exponent),
        .significand_o(significand)
    );
  end else begin : g_dot
    fp16_dot #(
        .FRACTION(FRACTION),
        .LANES   (LANES),
        .GUARD   (GUARD),
        .WIDTH   (Width)
    ) u_dot (
        .*,
        .sign_o       (sign),
        .exponent_o   (exponent),
        .significand_o(significand)
    );
  end

  logic [30:0] acc_q, total;  // sign, exponent, fraction
  fp_accumulate #(
      .WIDTH(Width)
  ) u_accumulate (
      .acc_sign_i    (acc_q[30] && !first_i),
      .acc_exponent_i(first_i ? '0 : acc_q[29:23]),
      .acc_fraction_i(first_i ? '0 : acc_q[22:0]),
      .sign_i        (sign),
      .exponent_i    (exponent),
      .significand_i (significand),
      .sign_o        (total[30]),
      .exponent_o    (total[29:23]),
      .fraction_o    (total[22:0])
  );

  always_ff @(posedge clk_i) begin
    if (take_i) acc_q <= total;
    if (load_i) drain_o <= total;
    else if (shift_i) drain_o <= drain_i;
  end

endmodule

`default_nettype wire
