// A binary16 number, or a shorter one with its exponent, as exponent and significand:
//
//   significand_o * 2^(exponent_o - 15 - FRACTION)
//
// NORMALISE = 0: subnormals have exponent 1 and no hidden bit. NORMALISE = 1: their leading one is shifted to the
// top, with exponents down to -9 (two's complement), so that the top bit is set unless the number is zero.
// The significand of an infinity or a NaN means nothing.
`default_nettype none

module fp16_decoder #(
    parameter int FRACTION  = 10,
    parameter int NORMALISE = 0
) (
    input  wire  [FRACTION+4:0] number_i,       // without its sign
    output logic [         5:0] exponent_o,
    output logic [  FRACTION:0] significand_o,
    output logic                zero_o,
    output logic                inf_o,
    output logic                nan_o
);

  logic [ 4:0] field;
  logic [FRACTION:0] significand;
  logic normal, special, fraction;
  assign field = number_i[FRACTION+:5];
  assign normal = field != 5'd0;
  assign special = field == 5'd31;
  assign fraction = number_i[FRACTION-1:0] != '0;
  assign significand = {normal, number_i[FRACTION-1:0]};

  assign zero_o = !normal && !fraction;
  assign inf_o = special && !fraction;
  assign nan_o = special && fraction;

  logic [5:0] exponent;
  assign exponent = {1'b0, field[4:1], field[0] || !normal};
  if (NORMALISE != 0) begin : g_normalise
    logic [$clog2(FRACTION+1)-1:0] count;
    fp_normalise #(
        .WIDTH(FRACTION + 1)
    ) u_normalise (
        .value_i(significand),
        .value_o(significand_o),
        .count_o(count)
    );
    assign exponent_o = exponent - 6'(count);
  end else begin : g_as_it_is
    assign significand_o = significand;
    assign exponent_o = exponent;
  end

endmodule

`default_nettype wire
