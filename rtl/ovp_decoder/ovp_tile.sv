// Output-stationary systolic tile that multiplies matrices of outlier-victim pairs (OliVe, ISCA 2023).
//
// A tile is act (rows, k) times the transpose of weight (columns, k), k even. A beat takes the next pair along
// k of every row and every column, and lasts two cycles: an element multiplies once per cycle.
//
//   wide_i = 0   4-bit values: ROWS x COLS results. Byte r of act_i is the pair of row r, byte c of weight_i
//                that of column c, the first value in the low half.
//   wide_i = 1   8-bit values: ROWS/2 x COLS/2 results, each by 2 x 2 elements. Bytes 2r and 2r+1 of act_i
//                are the first and second value of row r; so for weight_i and columns.
//
//   act_bias_i, weight_bias_i   bias of abfloats; wide_i and the biases are the same in all beats of a tile
//   last_i                      ends the tile
//   sum_o, overflow_o, last_o   one row of results, row 0 first: result c in word c (wide: in word 2c, and words
//                               2c+1 are 0); last_o with the last row of a tile
//
// WIDE = 0 leaves out the 8-bit mode and ignores wide_i.
//
// Overflow: every element's sum, and the sum of the four of an 8-bit result, wraps around at ACC_WIDTH bits.
// overflow_o[c] says that one of them did; without it the result is exact.
//
// Timing: valid/ready on both sides. Row r is offered COLS + 4 + DECODE_REG + 2r cycles after the cycle that
// took the last beat, when that beat had not to wait: last beats are decoded at least 2 ROWS cycles apart, so
// that a tile's results do not meet those of the one before. ready_o depends on ready_i combinationally:
// while a result waits the whole unit stands still. Reset is synchronous.
`default_nettype none
`include "check.svh"

module ovp_tile #(
    parameter int ROWS       = 4,  // 2 to 16; even with WIDE = 1
    parameter int COLS       = 4,  // 2 to 16; even with WIDE = 1
    parameter int WIDE       = 1,  // 1: with the 8-bit mode
    parameter int DECODE_REG = 0,  // 1: a register behind the decoders
    parameter int ACC_WIDTH  = 32  // accumulators and results, 31 to 40 bits
) (
    input  wire                       clk_i,
    input  wire                       rst_ni,
    input  wire                       valid_i,
    output logic                      ready_o,
    input  wire  [        ROWS*8-1:0] act_i,
    input  wire  [        COLS*8-1:0] weight_i,
    input  wire  [               3:0] act_bias_i,
    input  wire  [               3:0] weight_bias_i,
    input  wire                       wide_i,
    input  wire                       last_i,
    output logic                      valid_o,
    input  wire                       ready_i,
    output logic [COLS*ACC_WIDTH-1:0] sum_o,
    output logic [          COLS-1:0] overflow_o,
    output logic                      last_o
);

  if (WIDE != 0 && WIDE != 1) begin : g_check_wide
    `TOKENFAB_STOP(WIDE, "ovp_decoder: WIDE must be 0 or 1")
  end
  if (ROWS < 2 || ROWS > 16 || (WIDE == 1 && ROWS % 2 != 0)) begin : g_check_rows
    `TOKENFAB_STOP(ROWS, "ovp_decoder: ROWS must be from 2 to 16, and even with WIDE = 1")
  end
  if (COLS < 2 || COLS > 16 || (WIDE == 1 && COLS % 2 != 0)) begin : g_check_cols
    `TOKENFAB_STOP(COLS, "ovp_decoder: COLS must be from 2 to 16, and even with WIDE = 1")
  end
  if (DECODE_REG != 0 && DECODE_REG != 1) begin : g_check_decode_reg
    `TOKENFAB_STOP(DECODE_REG, "ovp_decoder: DECODE_REG must be 0 or 1")
  end
  if (ACC_WIDTH < 31 || ACC_WIDTH > 40) begin : g_check_acc_width
    `TOKENFAB_STOP(ACC_WIDTH, "ovp_decoder: ACC_WIDTH must be from 31 to 40")
  end

  localparam int IntWidth = WIDE == 1 ? 5 : 4;
  localparam int Part = IntWidth + 4;  // {exponent, integer} of a multiplier's operand
  localparam int Word = ACC_WIDTH + 1;  // {wrapped, sum}
  localparam int GapWidth = $clog2(2 * ROWS);

  // -- one enable for everything --------------------------------------------------------------------
  logic en;
  assign en = ready_i || !valid_o;

  // -- a beat, first its first values, then its second ones -----------------------------------------
  logic full_q, second_q, first_q, last_q;
  logic [GapWidth-1:0] gap_q;  // cycles until a last beat may be decoded
  logic [ROWS*8-1:0] act_q;
  logic [COLS*8-1:0] weight_q;
  logic [3:0] act_bias_q, weight_bias_q;
  logic wide_q, take, step;
  assign step    = full_q && (second_q || !last_q || gap_q == '0);
  assign ready_o = en && (!full_q || second_q);
  assign take    = valid_i && ready_o;

  always_ff @(posedge clk_i) begin
    if (!rst_ni) begin
      full_q   <= 1'b0;
      second_q <= 1'b0;
      first_q  <= 1'b1;
      gap_q    <= '0;
    end else if (en) begin
      full_q <= take || (full_q && !second_q);
      if (step) begin
        second_q <= !second_q;
        first_q  <= last_q && second_q;
      end
      if (step && last_q && !second_q) gap_q <= GapWidth'(2 * ROWS - 1);
      else if (gap_q != '0) gap_q <= gap_q - 1'b1;
    end
  end
  always_ff @(posedge clk_i) begin
    if (take) begin
      act_q         <= act_i;
      weight_q      <= weight_i;
      act_bias_q    <= act_bias_i;
      weight_bias_q <= weight_bias_i;
      last_q        <= last_i;
    end
  end
  if (WIDE == 1) begin : g_wide
    always_ff @(posedge clk_i) begin
      if (take) wide_q <= wide_i;
    end
  end else begin : g_narrow
    wire unused_wide = wide_i;
    assign wide_q = 1'b0;
  end

  // -- decoders on both edges; control {wide, last, first, valid} keeps them company ------------------
  logic [3:0] control;
  if (DECODE_REG == 1) begin : g_control_registered
    always_ff @(posedge clk_i) begin
      if (!rst_ni) control[0] <= 1'b0;
      else if (en) control[0] <= step;
    end
    always_ff @(posedge clk_i) begin
      if (en) control[3:1] <= {wide_q, last_q && second_q, first_q};
    end
  end else begin : g_control
    assign control = {wide_q, last_q && second_q, first_q, step};
  end

  logic [ROWS*Part-1:0] act_part;
  logic [COLS*Part-1:0] weight_part;
  ovp_edge #(
      .LANES(ROWS),
      .WIDE(WIDE),
      .REGISTERED(DECODE_REG)
  ) u_act_edge (
      .clk_i,
      .en_i    (en),
      .data_i  (act_q),
      .second_i(second_q),
      .bias_i  (act_bias_q),
      .wide_i  (control[3]),
      .part_o  (act_part)
  );
  ovp_edge #(
      .LANES(COLS),
      .WIDE(WIDE),
      .REGISTERED(DECODE_REG)
  ) u_weight_edge (
      .clk_i,
      .en_i    (en),
      .data_i  (weight_q),
      .second_i(second_q),
      .bias_i  (weight_bias_q),
      .wide_i  (control[3]),
      .part_o  (weight_part)
  );

  // -- skew: row r and column c wait r and c cycles ----------------------------------------------------
  logic [ROWS*(COLS+1)*Part-1:0] act;  // between the elements of a row
  logic [ROWS*(COLS+1)*4-1:0] ctl;
  logic [(ROWS+1)*COLS*Part-1:0] weight;  // between those of a column
  logic [(ROWS+1)*COLS*Word-1:0] drain;  // upwards
  for (genvar r = 0; r < ROWS; r++) begin : g_act
    if (r == 0) begin : g_straight
      assign act[0+:Part] = act_part[0+:Part];
      assign ctl[0+:4]    = control;
    end else begin : g_skew
      logic [r*(Part+3)-1:0] shift_q;
      logic [r-1:0] valid_q;
      always_ff @(posedge clk_i) begin
        if (!rst_ni) valid_q <= '0;
        else if (en) valid_q <= r'({valid_q, control[0]});
      end
      always_ff @(posedge clk_i) begin
        if (en) shift_q <= (r * (Part + 3))'({shift_q, control[3:1], act_part[r*Part+:Part]});
      end
      assign act[r*(COLS+1)*Part+:Part] = shift_q[(r-1)*(Part+3)+:Part];
      assign ctl[r*(COLS+1)*4+:4]       = {shift_q[(r-1)*(Part+3)+Part+:3], valid_q[r-1]};
    end
  end
  for (genvar c = 0; c < COLS; c++) begin : g_weight
    if (c == 0) begin : g_straight
      assign weight[0+:Part] = weight_part[0+:Part];
    end else begin : g_skew
      logic [c*Part-1:0] shift_q;
      always_ff @(posedge clk_i) begin
        if (en) shift_q <= (c * Part)'({shift_q, weight_part[c*Part+:Part]});
      end
      assign weight[c*Part+:Part] = shift_q[(c-1)*Part+:Part];
    end
    assign drain[(ROWS*COLS+c)*Word+:Word] = '0;  // nothing comes from below
    wire unused_weight = ^weight[(ROWS*COLS+c)*Part+:Part];
  end

  // -- the elements --------------------------------------------------------------------------------------
  logic [(ROWS+1)*4-1:0] mark;  // of every row of drain: {odd row, last row, wide, valid}
  assign mark[ROWS*4+:4] = '0;
  for (genvar r = 0; r < ROWS; r++) begin : g_row
    for (genvar c = 0; c < COLS; c++) begin : g_col
      ovp_pe #(
          .INT_WIDTH(IntWidth),
          .ACC_WIDTH(ACC_WIDTH)
      ) u_pe (
          .clk_i,
          .rst_ni,
          .en_i     (en),
          .act_i    (act[(r*(COLS+1)+c)*Part+:Part]),
          .weight_i (weight[(r*COLS+c)*Part+:Part]),
          .control_i(ctl[(r*(COLS+1)+c)*4+:4]),
          .drain_i  (drain[((r+1)*COLS+c)*Word+:Word]),
          .act_o    (act[(r*(COLS+1)+c+1)*Part+:Part]),
          .weight_o (weight[((r+1)*COLS+c)*Part+:Part]),
          .control_o(ctl[(r*(COLS+1)+c+1)*4+:4]),
          .drain_o  (drain[(r*COLS+c)*Word+:Word])
      );
    end
    wire unused_act = ^act[(r*(COLS+1)+COLS)*Part+:Part];

    // The last column's results leave without a wait, and so do their marks.
    logic [3:0] end_ctl, mark_q;
    assign end_ctl = ctl[(r*(COLS+1)+COLS)*4+:4];
    always_ff @(posedge clk_i) begin
      if (!rst_ni) mark_q[0] <= 1'b0;
      else if (en) mark_q[0] <= (end_ctl[0] && end_ctl[2]) || mark[(r+1)*4];
    end
    always_ff @(posedge clk_i) begin
      if (en) begin
        mark_q[3:1] <= end_ctl[0] && end_ctl[2] ? {1'(r % 2), 1'(r == ROWS - 1), end_ctl[3]} : mark[(r+1)*4+1+:3];
      end
    end
    assign mark[r*4+:4] = mark_q;
    wire unused_first = end_ctl[1];
  end

  // -- a row of results: column c waits for the last one ----------------------------------------------
  logic [COLS*Word-1:0] row;
  for (genvar c = 0; c < COLS; c++) begin : g_level
    localparam int Wait = COLS - 1 - c;
    if (Wait == 0) begin : g_straight
      assign row[c*Word+:Word] = drain[c*Word+:Word];
    end else begin : g_wait
      logic [Wait*Word-1:0] shift_q;
      always_ff @(posedge clk_i) begin
        if (en) shift_q <= (Wait * Word)'({shift_q, drain[c*Word+:Word]});
      end
      assign row[c*Word+:Word] = shift_q[(Wait-1)*Word+:Word];
    end
  end

  always_ff @(posedge clk_i) begin
    if (!rst_ni) valid_o <= 1'b0;
    else if (en) valid_o <= mark[0] && (!mark[1] || mark[3]);
  end
  always_ff @(posedge clk_i) begin
    if (en) last_o <= mark[2];
  end

  if (WIDE == 1) begin : g_results
    // 8-bit results: four sums, two of an even row, kept, and two of the odd row behind it.
    for (genvar c = 0; c < COLS; c = c + 2) begin : g_pair
      logic [Word-1:0] left, right;
      assign left  = row[c*Word+:Word];
      assign right = row[(c+1)*Word+:Word];
      logic signed [ACC_WIDTH:0] both, both_q;
      logic signed [ACC_WIDTH+1:0] four;
      logic any, any_q, fits;
      assign both = (ACC_WIDTH + 1)'($signed(left[ACC_WIDTH-1:0])) + (ACC_WIDTH + 1)'($signed(right[ACC_WIDTH-1:0]));
      assign any  = left[ACC_WIDTH] || right[ACC_WIDTH];
      assign four = (ACC_WIDTH + 2)'(both) + (ACC_WIDTH + 2)'(both_q);
      assign fits = four[ACC_WIDTH+1] == four[ACC_WIDTH-1] && four[ACC_WIDTH] == four[ACC_WIDTH-1];
      always_ff @(posedge clk_i) begin
        if (en && mark[0] && !mark[3]) begin
          both_q <= both;
          any_q  <= any;
        end
      end
      always_ff @(posedge clk_i) begin
        if (en) begin
          sum_o[c*ACC_WIDTH+:ACC_WIDTH]     <= mark[1] ? four[ACC_WIDTH-1:0] : left[ACC_WIDTH-1:0];
          sum_o[(c+1)*ACC_WIDTH+:ACC_WIDTH] <= mark[1] ? '0 : right[ACC_WIDTH-1:0];
          overflow_o[c]                     <= mark[1] ? any || any_q || !fits : left[ACC_WIDTH];
          overflow_o[c+1]                   <= !mark[1] && right[ACC_WIDTH];
        end
      end
    end
  end else begin : g_results
    for (genvar c = 0; c < COLS; c++) begin : g_one
      always_ff @(posedge clk_i) begin
        if (en) begin
          sum_o[c*ACC_WIDTH+:ACC_WIDTH] <= row[c*Word+:ACC_WIDTH];
          overflow_o[c]                 <= row[c*Word+ACC_WIDTH];
        end
      end
    end
  end

endmodule

`default_nettype wire
