// The sum of LANES products of binary16 numbers, normalised: an addend of fp_accumulate. Two register stages.
//
//   stage 1  exact products of 2 * FRACTION + 2 bits, their exponents, the greatest, distances from it; zero products are off
//   stage 2  products with GUARD zeros below them, shifted right by their distances (cut towards zero), added
//            exactly; sign and magnitude, normalised
//
// exponent_o = 0: zero; 127: an infinity or, where significand_o[WIDTH-2] is set, a NaN.
`default_nettype none

module fp16_dot #(
    parameter int FRACTION = 10,
    parameter int LANES    = 4,
    parameter int GUARD    = 3,
    parameter int WIDTH    = 27   // 2 * FRACTION + 2 + GUARD + log2(LANES)
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
    output logic                sign_o,
    output logic [         6:0] exponent_o,
    output logic [   WIDTH-1:0] significand_o
);

  localparam int Significand = FRACTION + 1;
  localparam int Product = 2 * Significand;

  // -- stage 1: products and exponents -----------------------------------------------------------------
  logic [LANES-1:0] sign, zero, special, nans;
  assign sign = act_sign_i ^ weight_sign_i;
  assign zero = act_zero_i | weight_zero_i;
  assign special = act_inf_i | act_nan_i | weight_inf_i | weight_nan_i;
  assign nans = act_nan_i | weight_nan_i | (special & zero);

  logic [LANES*Product-1:0] product;
  logic [LANES*6-1:0] exponent, distance;
  logic [5:0] greatest;
  for (genvar l = 0; l < LANES; l++) begin : g_product
    assign product[l*Product+:Product] = Product'(act_significand_i[l*Significand+:Significand])
        * Product'(weight_significand_i[l*Significand+:Significand]);
    assign exponent[l*6+:6]  = zero[l] ? '0 : act_exponent_i[l*6+:6] + weight_exponent_i[l*6+:6];
    assign distance[l*6+:6]  = greatest - exponent[l*6+:6];
  end
  always_comb begin
    greatest = '0;
    for (int l = 0; l < LANES; l++) if (exponent[l*6+:6] > greatest) greatest = exponent[l*6+:6];
  end

  logic [LANES*Product-1:0] product_q;
  logic [LANES*6-1:0] distance_q;
  logic [LANES-1:0] sign_q;
  logic [5:0] greatest_q;
  logic special_q, nan_q, special_sign_q;
  always_ff @(posedge clk_i) begin
    if (en_i) begin
      product_q <= product;
      distance_q <= distance;
      sign_q <= sign;
      greatest_q <= greatest;
      special_q <= special != '0;
      nan_q <= nans != '0 || ((special & sign) != '0 && (special & ~sign) != '0);
      special_sign_q <= (special & sign) != '0;
    end
  end

  // -- stage 2: align, add, normalise ------------------------------------------------------------------
  // -x is ~x + 1; the ones are added together with the lanes.
  logic [LANES*(WIDTH+1)-1:0] lane;
  for (genvar l = 0; l < LANES; l++) begin : g_align
    logic [Product+GUARD-1:0] magnitude;
    assign magnitude = ((Product + GUARD)'(product_q[l*Product+:Product]) << GUARD) >> distance_q[l*6+:6];
    assign lane[l*(WIDTH+1)+:WIDTH+1] = (WIDTH + 1)'(magnitude) ^ {(WIDTH + 1) {sign_q[l]}};
  end

  logic [WIDTH:0] sum;
  always_comb begin
    sum = '0;
    for (int l = 0; l < LANES; l++) sum = sum + lane[l*(WIDTH+1)+:WIDTH+1] + (WIDTH + 1)'(sign_q[l]);
  end

  logic [WIDTH-1:0] size, normal;
  logic [$clog2(WIDTH)-1:0] count;
  assign size = sum[WIDTH] ? -sum[WIDTH-1:0] : sum[WIDTH-1:0];
  fp_normalise #(
      .WIDTH(WIDTH)
  ) u_normalise (
      .value_i(size),
      .value_o(normal),
      .count_o(count)
  );

  always_ff @(posedge clk_i) begin
    if (en_i) begin
      sign_o <= special_q ? special_sign_q : sum[WIDTH];
      exponent_o <= special_q ? 7'd127 : !normal[WIDTH-1] ? 7'd0 : 7'(greatest_q) + 7'd32 - 7'(count);
      significand_o <= {normal[WIDTH-1], special_q ? nan_q : normal[WIDTH-2], normal[WIDTH-3:0]};
    end
  end

endmodule

`default_nettype wire
