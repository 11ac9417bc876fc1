// Multiplies two integers and adds their exponents: combinational; the product is product_o * 2^shift_o.
//
//   act_i, weight_i   {exponent, 4 bits; integer, INT_WIDTH bits, signed}; the integer of magnitude at most 7
//                     (INT_WIDTH = 4) or 15 (INT_WIDTH = 5), so that one bit less than twice the width is enough
`default_nettype none

module ovp_multiplier #(
    parameter int INT_WIDTH = 5
) (
    input  wire  [  INT_WIDTH+3:0] act_i,
    input  wire  [  INT_WIDTH+3:0] weight_i,
    output logic [2*INT_WIDTH-2:0] product_o,
    output logic [            4:0] shift_o
);

  localparam int ProductWidth = 2 * INT_WIDTH - 1;

  assign product_o = ProductWidth'($signed(act_i[INT_WIDTH-1:0])) * ProductWidth'($signed(weight_i[INT_WIDTH-1:0]));
  assign shift_o   = 5'(act_i[INT_WIDTH+:4]) + 5'(weight_i[INT_WIDTH+:4]);

endmodule

`default_nettype wire
