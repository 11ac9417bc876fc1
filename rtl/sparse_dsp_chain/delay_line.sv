// A word delayed by DEPTH enabled edges; DEPTH 0 is a wire. No reset: maps onto shift-register LUTs.
`default_nettype none

module delay_line #(
    parameter int WIDTH = 1,
    parameter int DEPTH = 0
) (
    input  wire              clk_i,
    input  wire              en_i,
    input  wire  [WIDTH-1:0] data_i,
    output logic [WIDTH-1:0] data_o
);

  if (DEPTH == 0) begin : g_wire
    wire unused_clocking = clk_i ^ en_i;
    assign data_o = data_i;
  end else if (DEPTH == 1) begin : g_register
    always_ff @(posedge clk_i) begin
      if (en_i) data_o <= data_i;
    end
  end else begin : g_shift
    logic [DEPTH*WIDTH-1:0] shift_q;
    always_ff @(posedge clk_i) begin
      if (en_i) shift_q <= {shift_q[(DEPTH-1)*WIDTH-1:0], data_i};
    end
    assign data_o = shift_q[DEPTH*WIDTH-1-:WIDTH];
  end

endmodule

`default_nettype wire
