// The exact product of two binary16 numbers, normalised: an addend of fp_accumulate. One register stage.
//
// The significand of a product of two normalised ones has its leading one in one of two places, so normalising it
// is one multiplexer. exponent_o = 0: zero; 127: an infinity or, with the bit below the leading one, a NaN.
`default_nettype none

module fp16_product #(
    parameter int FRACTION = 10,
    parameter int WIDTH    = 22   // 2 * FRACTION + 2
) (
    input  wire         clk_i,
    input  wire         en_i,
    input  wire         act_sign_i,
    input  wire  [ 5:0] act_exponent_i,
    input  wire  [FRACTION:0] act_significand_i,
    input  wire         act_zero_i,
    input  wire         act_inf_i,
    input  wire         act_nan_i,
    input  wire         weight_sign_i,
    input  wire  [ 5:0] weight_exponent_i,
    input  wire  [FRACTION:0] weight_significand_i,
    input  wire         weight_zero_i,
    input  wire         weight_inf_i,
    input  wire         weight_nan_i,
    output logic        sign_o,
    output logic [ 6:0] exponent_o,
    output logic [WIDTH-1:0] significand_o
);

  logic zero, special, not_a_number;
  assign zero = act_zero_i || weight_zero_i;
  assign special = act_inf_i || act_nan_i || weight_inf_i || weight_nan_i;
  assign not_a_number = act_nan_i || weight_nan_i || (special && zero);

  logic [WIDTH-1:0] product;
  logic [WIDTH-2:0] normal;  // below the leading one
  logic [6:0] act_exponent, weight_exponent, exponent;
  assign product = WIDTH'(act_significand_i) * WIDTH'(weight_significand_i);
  assign normal = product[WIDTH-1] ? product[WIDTH-2:0] : {product[WIDTH-3:0], 1'b0};
  assign act_exponent = {act_exponent_i[5], act_exponent_i};
  assign weight_exponent = {weight_exponent_i[5], weight_exponent_i};
  assign exponent = act_exponent + weight_exponent + 7'(product[WIDTH-1]);

  always_ff @(posedge clk_i) begin
    if (en_i) begin
      sign_o <= act_sign_i ^ weight_sign_i;
      exponent_o <= special ? 7'd127 : zero ? 7'd0 : exponent + 7'd32;
      significand_o <= {!zero, special ? not_a_number : normal[WIDTH-2], normal[WIDTH-3:0]};
    end
  end

endmodule

`default_nettype wire
