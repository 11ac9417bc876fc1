// One processing element: multiplies two integer-exponent pairs, adds to its own sum, passes both on.
//
//   term = integer_a * integer_w * 2^(exponent_a + exponent_w)      |term| < 2^30, exact
//
// act_i goes right and weight_i down, one step per enabled edge, control_i with act_i. The sum starts anew
// with control_i[FIRST] and is handed to drain_o with control_i[LAST]; in other cycles drain_o takes what
// the element below drains. The sum wraps around at ACC_WIDTH bits; the top bit of drain_o says that it did.
//
//   act_i, weight_i   {exponent, 4 bits; integer, INT_WIDTH bits, signed}; see ovp_multiplier.sv
//   control_i         {wide, last, first, valid}; wide is only passed on
`default_nettype none

module ovp_pe #(
    parameter int INT_WIDTH = 5,
    parameter int ACC_WIDTH = 32
) (
    input  wire                  clk_i,
    input  wire                  rst_ni,
    input  wire                  en_i,
    input  wire  [INT_WIDTH+3:0] act_i,
    input  wire  [INT_WIDTH+3:0] weight_i,
    input  wire  [          3:0] control_i,
    input  wire  [  ACC_WIDTH:0] drain_i,
    output logic [INT_WIDTH+3:0] act_o,
    output logic [INT_WIDTH+3:0] weight_o,
    output logic [          3:0] control_o,
    output logic [  ACC_WIDTH:0] drain_o
);

  always_ff @(posedge clk_i) begin
    if (!rst_ni) control_o[0] <= 1'b0;
    else if (en_i) control_o[0] <= control_i[0];
  end
  always_ff @(posedge clk_i) begin
    if (en_i) begin
      act_o          <= act_i;
      weight_o       <= weight_i;
      control_o[3:1] <= control_i[3:1];
    end
  end

  logic valid, first, last;
  assign valid = control_o[0];
  assign first = control_o[1];
  assign last  = control_o[2];

  logic [2*INT_WIDTH-2:0] product;
  logic [4:0] shift;
  ovp_multiplier #(
      .INT_WIDTH(INT_WIDTH)
  ) u_multiplier (
      .act_i    (act_o),
      .weight_i (weight_o),
      .product_o(product),
      .shift_o  (shift)
  );
  logic signed [30:0] term;
  assign term = 31'($signed(product)) <<< shift;

  logic signed [ACC_WIDTH-1:0] sum_q;
  logic signed [ACC_WIDTH:0] sum;
  logic wrapped_q, wrapped;
  assign sum     = (ACC_WIDTH + 1)'(term) + (first ? '0 : (ACC_WIDTH + 1)'(sum_q));
  assign wrapped = (sum[ACC_WIDTH] != sum[ACC_WIDTH-1]) || (!first && wrapped_q);

  always_ff @(posedge clk_i) begin
    if (en_i && valid) begin
      sum_q     <= sum[ACC_WIDTH-1:0];
      wrapped_q <= wrapped;
    end
  end
  // last without valid is only what a reset leaves, and leaves the tile before anything new drains.
  always_ff @(posedge clk_i) begin
    if (en_i) drain_o <= last ? {wrapped, sum[ACC_WIDTH-1:0]} : drain_i;
  end

endmodule

`default_nettype wire
