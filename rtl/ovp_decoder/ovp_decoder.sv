// Decoder of one outlier-victim pair (OliVe, ISCA 2023): one of its two values as integer times 2^exponent.
//
// In a pair where a code is the identifier (1000 or 1000_0000), that value is the victim, 0, and the other
// is an abfloat of sign s, field e, field f (F = 1 bit of f for BITS = 4, F = 3 for BITS = 8):
//
//   integer = (-1)^s * (2^F + f), exponent = min(e + bias_i, 11);   0 where e = f = 0
//
// In any other pair both are integers with exponent 0. So 4'h7 beside 4'h8 with bias 2 is +3 * 2^(3+2) = 96,
// beside anything else 7.
//
//   pair_i      the first value in the lower half
//   second_i    which value to decode
//   integer_o   BITS = 4: signed. BITS = 8: {high, low}, signed with 4 and 5 bits, for two 4-bit multipliers;
//               the value is high * 2^4 + low * 2^exponent (of these at most one factor is not trivial: an
//               outlier has high = 0, an integer has exponent 0)
//
// REGISTERED = 1 puts a register behind it, enabled by en_i; with 0 it is combinational.
`default_nettype none

module ovp_decoder #(
    parameter int BITS       = 4,  // of a value: 4, 8
    parameter int REGISTERED = 0   // 0, 1
) (
    input  wire                           clk_i,
    input  wire                           en_i,
    input  wire  [            2*BITS-1:0] pair_i,
    input  wire                           second_i,
    input  wire  [                   3:0] bias_i,
    output logic [                   3:0] exponent_o,
    output logic [(BITS == 8 ? 9 : 4)-1:0] integer_o
);

  localparam int MantissaBits = BITS == 8 ? 3 : 1;
  localparam int IntegerWidth = BITS == 8 ? 9 : 4;
  localparam logic [BITS-1:0] Identifier = {1'b1, {(BITS - 1) {1'b0}}};

  logic [BITS-1:0] own, other;
  assign own   = second_i ? pair_i[2*BITS-1:BITS] : pair_i[BITS-1:0];
  assign other = second_i ? pair_i[BITS-1:0] : pair_i[2*BITS-1:BITS];

  logic outlier, zero;
  assign outlier = other == Identifier;  // or, beside a second identifier, nothing
  assign zero    = own == Identifier || (outlier && own[BITS-2:0] == '0);

  logic [4:0] exponent_sum;
  assign exponent_sum = 5'(own[BITS-2:MantissaBits]) + 5'(bias_i);

  logic [MantissaBits+1:0] magnitude, as_float;  // with a sign
  assign magnitude = {2'b01, own[MantissaBits-1:0]};
  assign as_float     = own[BITS-1] ? -magnitude : magnitude;

  logic [3:0] exponent;
  assign exponent = !outlier || zero ? 4'd0 : exponent_sum > 5'd11 ? 4'd11 : exponent_sum[3:0];

  logic [IntegerWidth-1:0] value;
  if (BITS == 8) begin : g_two_parts
    assign value = zero ? '0 : outlier ? {4'b0, as_float} : {own[7:4], 1'b0, own[3:0]};
  end else begin : g_one_part
    assign value = zero ? '0 : outlier ? {as_float[2], as_float} : own;
  end

  if (REGISTERED != 0) begin : g_registered
    always_ff @(posedge clk_i) begin
      if (en_i) begin
        exponent_o <= exponent;
        integer_o  <= value;
      end
    end
  end else begin : g_combinational
    wire unused_clocking = clk_i ^ en_i;
    assign exponent_o = exponent;
    assign integer_o  = value;
  end

endmodule

`default_nettype wire
