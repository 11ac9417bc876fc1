// One result of a tile: looks up, adds over the bits of the weights, adds over the groups of the tile.
//
//   take_i   partial = (first_i ? 0 : 2 * partial) + (negative ? -entry : entry)        code_i = {negative, index}
//   done_i   group   = odd_i ? partial : (partial - constant_i) / 2
//   add_i    sum     = saturate((clear_i ? 0 : sum) + group * 2^shift_i)                sum_o, overflow_o
//
// The three follow one another, each on its own edge. partial has TABLE_WIDTH + MAX_BITS bits and group as
// many; neither can overflow. sum_o and overflow_o show what the register will hold after the edge.
`default_nettype none

module lut_lane #(
    parameter int K           = 4,
    parameter int TABLE_WIDTH = 10,
    parameter int MAX_BITS    = 8,
    parameter int SHIFT       = 0,  // greatest shift_i
    parameter int ACC_WIDTH   = 32  // at least TABLE_WIDTH + MAX_BITS + SHIFT
) (
    input  wire                              clk_i,
    input  wire  [(TABLE_WIDTH<<(K-1))-1:0] table_i,
    input  wire  [                   K-1:0] code_i,
    input  wire                             take_i,
    input  wire                             first_i,
    input  wire                             done_i,
    input  wire  [         TABLE_WIDTH-1:0] constant_i,
    input  wire                             odd_i,
    input  wire                             add_i,
    input  wire                             clear_i,
    input  wire  [                     4:0] shift_i,
    output logic [           ACC_WIDTH-1:0] sum_o,
    output logic                            overflow_o
);

  localparam int Width = TABLE_WIDTH + MAX_BITS;

  // -- look up; the one to add for a negative entry fills the place that doubling leaves empty --------
  logic negative;
  logic [TABLE_WIDTH-1:0] entry;
  logic [Width-1:0] partial_q;
  assign negative = code_i[K-1];
  assign entry = table_i[int'(code_i[K-2:0])*TABLE_WIDTH+:TABLE_WIDTH] ^ {TABLE_WIDTH{negative}};
  always_ff @(posedge clk_i) begin
    if (take_i) begin
      partial_q <= {first_i ? {(Width - 1) {1'b0}} : partial_q[Width-2:0], negative} + Width'($signed(entry));
    end
  end

  // -- the constant of two's complement -----------------------------------------------------------------
  logic [Width:0] twice;
  logic [Width-1:0] group_q;
  wire unused_half = twice[0];  // zero, unless entries are rounded
  assign twice = (Width + 1)'($signed(partial_q)) - (Width + 1)'($signed(constant_i));
  always_ff @(posedge clk_i) begin
    if (done_i) group_q <= odd_i ? partial_q : twice[Width:1];
  end

  // -- accumulate; saturate -----------------------------------------------------------------------------
  logic [ACC_WIDTH:0] term, wide;  // one bit more than the accumulator
  logic [ACC_WIDTH-1:0] acc_q;
  logic overflow_q;
  logic beyond;
  if (SHIFT > 0) begin : g_shift
    assign term = (ACC_WIDTH + 1)'($signed(group_q)) << shift_i;
  end else begin : g_no_shift
    wire unused_shift = ^shift_i;
    assign term = (ACC_WIDTH + 1)'($signed(group_q));
  end
  assign wide = term + (clear_i ? '0 : (ACC_WIDTH + 1)'($signed(acc_q)));
  assign beyond = wide[ACC_WIDTH] != wide[ACC_WIDTH-1];
  assign sum_o = beyond ? {wide[ACC_WIDTH], {(ACC_WIDTH - 1) {!wide[ACC_WIDTH]}}} : wide[ACC_WIDTH-1:0];
  assign overflow_o = beyond || (overflow_q && !clear_i);
  always_ff @(posedge clk_i) begin
    if (add_i) begin
      acc_q <= sum_o;
      overflow_q <= overflow_o;
    end
  end

endmodule

`default_nettype wire
