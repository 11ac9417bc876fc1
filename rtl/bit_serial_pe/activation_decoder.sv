// An activation as sign, exponent and significand:  (-1)^sign_o * significand_o * 2^(exponent_o - 25).
//
// FP16: subnormal numbers are exact, with exponent 1 and no hidden bit. An infinity or a NaN counts as 0
// and raises invalid_o. INT8 (the low eight bits; what is above them is ignored): the magnitude, at most
// 128, stands three bits up in the significand, so that the three free bits keep it exact when shifted.
`default_nettype none

module activation_decoder (
    input  wire  [15:0] act_i,
    input  wire         int8_i,
    output logic        sign_o,
    output logic [ 4:0] exponent_o,
    output logic [10:0] significand_o,
    output logic        nonzero_o,
    output logic        invalid_o
);

  logic [7:0] magnitude;
  assign magnitude = act_i[7] ? -act_i[7:0] : act_i[7:0];

  always_comb begin
    if (int8_i) begin
      sign_o = act_i[7];
      exponent_o = 5'd22;
      significand_o = {magnitude, 3'b0};
      invalid_o = 1'b0;
    end else begin
      sign_o = act_i[15];
      exponent_o = act_i[14:10] == 5'd0 ? 5'd1 : act_i[14:10];
      significand_o = {act_i[14:10] != 5'd0, act_i[9:0]};
      invalid_o = act_i[14:10] == 5'd31;
    end
    nonzero_o = significand_o != '0 && !invalid_o;
  end

endmodule

`default_nettype wire
