// A fixed-point number as binary32 or binary16: to nearest, ties to even. Combinational.
//
//   float_o ~ total_i * 2^UNIT
//
// Zero is +0; subnormals are kept; beyond the greatest binary16 the result is infinity and overflow_o is set.
// binary32 holds every total that ACC_WIDTH bits hold: its exponent has room for 2^(UNIT + ACC_WIDTH).
`default_nettype none

module lut_round #(
    parameter int ACC_WIDTH = 54,  // 26 to 127
    parameter int UNIT      = -27,
    parameter int HALF      = 0    // 1: binary16
) (
    input  wire  [             ACC_WIDTH-1:0] total_i,
    output logic [(HALF != 0 ? 16 : 32) -1:0] float_o,
    output logic                              overflow_o
);

  localparam int Fraction = HALF != 0 ? 10 : 23;
  localparam int Bias = HALF != 0 ? 15 : 127;
  localparam int Lowest = 1 - Bias - UNIT;  // where the least normal number has its leading one
  localparam int Floor = Lowest > 0 ? Lowest : 0;

  logic [ACC_WIDTH-1:0] size, normal;
  logic [6:0] place;  // of the leading one, or Floor where that is higher: a subnormal
  assign size = total_i[ACC_WIDTH-1] ? -total_i : total_i;
  always_comb begin
    place = 7'(Floor);
    for (int i = Floor + 1; i < ACC_WIDTH; i++) begin
      if (size[i]) place = 7'(i);
    end
  end
  assign normal = size << (7'(ACC_WIDTH - 1) - place);

  logic up;
  logic [31:0] magnitude;  // exponent and fraction; a carry out of the fraction belongs into the exponent
  assign up = normal[ACC_WIDTH-2-Fraction] && (normal[ACC_WIDTH-3-Fraction:0] != '0 || normal[ACC_WIDTH-1-Fraction]);
  assign magnitude = size == '0 ? '0 :
      ((32'(place) - 32'(Lowest)) << Fraction) + 32'(normal[ACC_WIDTH-1-:Fraction+1]) + 32'(up);

  if (HALF != 0) begin : g_half
    assign overflow_o = magnitude >= 32'h7C00;
    assign float_o = {total_i[ACC_WIDTH-1], overflow_o ? 15'h7C00 : magnitude[14:0]};
  end else begin : g_single
    wire unused_top = magnitude[31];
    assign overflow_o = 1'b0;
    assign float_o = {total_i[ACC_WIDTH-1], magnitude[30:0]};
  end

endmodule

`default_nettype wire
