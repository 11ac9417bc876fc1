// The accumulator of one column: adds the groups of ROWS dot products, one row per step, rows in turn.
//
// A step adds (product_i, exponent_i) to the partial sum of its row, or to zero in the first group of a dot
// product, at the greater exponent (align_add). The partial sums turn round: the oldest is that of the row
// whose step comes next.
`default_nettype none

module column_accumulator #(
    parameter int ROWS       = 8,
    parameter int WIDTH      = 34,  // of a product
    parameter int SUM_WIDTH  = 48
) (
    input  wire                  clk_i,
    input  wire                  step_i,
    input  wire                  first_i,     // the first group of the dot product
    input  wire  [    WIDTH-1:0] product_i,
    input  wire  [          5:0] exponent_i,
    input  wire                  overflow_i,
    output logic [SUM_WIDTH-1:0] sum_o,       // registered, as the next two
    output logic [          5:0] exponent_o,
    output logic                 overflow_o
);

  localparam int Entry = SUM_WIDTH + 7;
  logic [ROWS*Entry-1:0] entries_q;

  logic signed [WIDTH-1:0] addend;
  logic [SUM_WIDTH-1:0] old_sum, sum;
  logic [5:0] old_exponent, exponent;
  logic old_overflow, beyond;
  assign {old_overflow, old_exponent, old_sum} = first_i ? '0 : entries_q[Entry-1:0];
  assign addend = product_i;
  align_add #(
      .WIDTH(SUM_WIDTH)
  ) u_add (
      .a_i         (old_sum),
      .a_exponent_i(old_exponent),
      .b_i         (SUM_WIDTH'(addend)),
      .b_exponent_i(exponent_i),
      .sum_o       (sum),
      .exponent_o  (exponent),
      .beyond_o    (beyond)
  );

  logic [Entry-1:0] entry;
  assign entry = {beyond || overflow_i || old_overflow, exponent, sum};
  if (ROWS == 1) begin : g_one
    always_ff @(posedge clk_i) begin
      if (step_i) entries_q <= entry;
    end
  end else begin : g_turn
    always_ff @(posedge clk_i) begin
      if (step_i) entries_q <= {entry, entries_q[ROWS*Entry-1:Entry]};
    end
  end
  assign {overflow_o, exponent_o, sum_o} = entries_q[(ROWS-1)*Entry+:Entry];

endmodule

`default_nettype wire
