// Shifts the leading one to the top:  value_o = value_i << count_o.  Combinational.
//
// One shifter whose control bits are the leading-zero count, found as it shifts. Of zero the count is all ones.
`default_nettype none

module fp_normalise #(
    parameter int WIDTH = 28  // at least 2
) (
    input  wire  [        WIDTH-1:0] value_i,
    output logic [        WIDTH-1:0] value_o,
    output logic [$clog2(WIDTH)-1:0] count_o
);

  always_comb begin
    value_o = value_i;
    for (int b = $clog2(WIDTH) - 1; b >= 0; b--) begin
      count_o[b] = value_o >> (WIDTH - (1 << b)) == '0;
      if (count_o[b]) value_o = value_o << (1 << b);
    end
  end

endmodule

`default_nettype wire
