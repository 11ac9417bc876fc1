// Adds two numbers, each a signed mantissa with an exponent, at the greater of their exponents.
//
//   sum_o * 2^exponent_o = a_i * 2^a_exponent_i + b_i * 2^b_exponent_i
//
// but for this: the mantissa of the lesser exponent is shifted right arithmetically (rounded towards minus
// infinity), and the sum saturates at WIDTH bits, which raises beyond_o. Nothing is normalised: the exponent
// is the greatest that was ever added, so mantissas lose bits only to a greater exponent.
`default_nettype none

module align_add #(
    parameter int WIDTH = 32
) (
    input  wire  [WIDTH-1:0] a_i,
    input  wire  [      5:0] a_exponent_i,
    input  wire  [WIDTH-1:0] b_i,
    input  wire  [      5:0] b_exponent_i,
    output logic [WIDTH-1:0] sum_o,
    output logic [      5:0] exponent_o,
    output logic             beyond_o
);

  logic b_greater;
  logic [5:0] distance;
  logic signed [WIDTH-1:0] greater, lesser, shifted;
  logic signed [WIDTH:0] wide;
  assign b_greater = b_exponent_i > a_exponent_i;
  assign distance = b_greater ? b_exponent_i - a_exponent_i : a_exponent_i - b_exponent_i;
  assign greater = b_greater ? b_i : a_i;
  assign lesser = b_greater ? a_i : b_i;
  assign shifted = lesser >>> distance;
  assign wide = {greater[WIDTH-1], greater} + {shifted[WIDTH-1], shifted};

  assign exponent_o = b_greater ? b_exponent_i : a_exponent_i;
  assign beyond_o = wide[WIDTH] != wide[WIDTH-1];
  assign sum_o = beyond_o ? {wide[WIDTH], {(WIDTH - 1) {!wide[WIDTH]}}} : wide[WIDTH-1:0];

endmodule

`default_nettype wire
