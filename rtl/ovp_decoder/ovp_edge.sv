// The decoders on one edge of the tile: LANES bytes to LANES operands {exponent, integer} of 4-bit multipliers.
//
// 4-bit values: byte l is the pair of lane l. 8-bit values (WIDE = 1 and wide_i): bytes 2j and 2j+1 are a pair;
// the high part of the chosen value goes to lane 2j, the low part to lane 2j+1. That makes LANES 4-bit
// and LANES/2 8-bit decoders. wide_i goes with part_o: with REGISTERED it is one cycle later than data_i.
`default_nettype none

module ovp_edge #(
    parameter int LANES      = 4,
    parameter int WIDE       = 1,
    parameter int REGISTERED = 0
) (
    input  wire                                   clk_i,
    input  wire                                   en_i,
    input  wire  [                   LANES*8-1:0] data_i,
    input  wire                                   second_i,
    input  wire  [                           3:0] bias_i,
    input  wire                                   wide_i,
    output logic [LANES*(WIDE == 1 ? 9 : 8)-1:0] part_o
);

  localparam int Part = WIDE == 1 ? 9 : 8;

  logic [LANES*8-1:0] narrow;  // {exponent, integer} of 4-bit values
  for (genvar l = 0; l < LANES; l++) begin : g_lane
    ovp_decoder #(
        .BITS(4),
        .REGISTERED(REGISTERED)
    ) u_decoder (
        .clk_i,
        .en_i,
        .pair_i    (data_i[l*8+:8]),
        .second_i,
        .bias_i,
        .exponent_o(narrow[l*8+4+:4]),
        .integer_o (narrow[l*8+:4])
    );
  end

  if (WIDE == 1) begin : g_wide
    for (genvar j = 0; j < LANES / 2; j++) begin : g_pair
      logic [3:0] exponent;
      logic [8:0] parts;  // {high, 4 bits; low, 5 bits}
      ovp_decoder #(
          .BITS(8),
          .REGISTERED(REGISTERED)
      ) u_decoder (
          .clk_i,
          .en_i,
          .pair_i    (data_i[j*16+:16]),
          .second_i,
          .bias_i,
          .exponent_o(exponent),
          .integer_o (parts)
      );
      logic [7:0] even, odd;
      assign even = narrow[2*j*8+:8];
      assign odd  = narrow[(2*j+1)*8+:8];
      assign part_o[2*j*Part+:Part]     = wide_i ? {4'd4, parts[8], parts[8:5]} : {even[7:3], even[3:0]};
      assign part_o[(2*j+1)*Part+:Part] = wide_i ? {exponent, parts[4:0]} : {odd[7:3], odd[3:0]};
    end
  end else begin : g_narrow
    wire unused_wide = wide_i;
    assign part_o = narrow;
  end

endmodule

`default_nettype wire
