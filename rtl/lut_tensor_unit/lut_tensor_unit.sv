// A tile of M x N dot products by table lookup (after LUT Tensor Core, ISCA 2025, arXiv:2408.06003).
//
// A tile is a sequence of groups. A group is K inputs: M vectors of K activations, with bits_i, odd_i and
// last_i, on one port; and W = bits_i + 1 planes of N codes, one bit of each weight, top bit first, on
// the other. Results come out COLUMNS columns at a time. For row m and column n
//
//   L(i)   = negative ? -T[m][index] : T[m][index]       {negative, index} = code of bit i of column n's K weights
//   T[m][j] = a[K-1] + sum over i < K-1 of (j[i] ? a[i] : -a[i])             a: row m of the group
//   group   = odd_i ? sum of 2^i L(i) : (sum of 2^i L(i) - T[m][2^(K-1)-1]) / 2
//   sum_o   = the sum of the groups of the tile
//
// With s = +1 for a set bit and -1 for a clear one, a two's complement weight is w = (sum of 2^i s(i) - 1) / 2
// once its top bit is inverted, so that group is exactly the sum of w a. With odd_i the weights are
// the odd numbers u = sum of 2^i s(i): one bit is -1 or +1. The codes (the inverted top bit; index bits
// turned round and `negative` set where s of input K-1 is -1) are made beforehand: kernels.lut.codes.
//
//   act_i      row m, input k at place m * K + k; ACT_WIDTH bits each: signed, or binary16 (ACT_WIDTH = 16)
//   bits_i     bits of this group's weights, less one; a value beyond MAX_BITS - 1 is taken as that
//   last_i     the tile ends with this group
//   weight_i   column n at place n; {negative, index}, K bits each
//   sum_o      column c, row m at place c * M + m: ACC_WIDTH bits, signed; with binary16 activations binary32
//              or (HALF = 1) binary16. Beat b of a tile has columns b * COLUMNS and up
//   overflow_o one bit for each place of sum_o;  invalid_o  one bit for each row
//
// Binary16 activations (lut_align): the K of a row share the greatest exponent; zeros and subnormals count as
// exponent field 1; GUARD bits are kept below the significand, the rest is cut off, towards zero. With
// TABLE_WIDTH > 0 table entries are rounded to that many bits (lut_table), and the halving of a
// two's complement group rounds downwards. Group sums are shifted by the exponent, 0 .. 29, into a fixed point
// of 2^(dropped bits - 24 - GUARD): no exponents are added up, so none can overflow. The end result is rounded
// once, to nearest, ties to even; zero is +0 (lut_round). Infinity or NaN among a row's activations makes
// all its results of the tile NaN, with invalid_o set and overflow_o clear.
//
// Overflow: a group sum is exact. The accumulator saturates at ACC_WIDTH bits after every group, and
// overflow_o stays set to the end of the tile. A result beyond binary16 is infinite, and overflow_o is set.
//
// Timing: a table is made in two cycles, while planes look up in the one before it; one plane per cycle. The
// first beat of results is offered 4 cycles after the cycle that took the tile's last plane, the others
// follow one per cycle. Tiles follow without a gap when they have N / COLUMNS planes or more. All ready
// outputs depend combinationally on ready_i, and act_ready_o on weight_valid_i. Reset is synchronous.
`default_nettype none
`include "check.svh"

module lut_tensor_unit #(
    parameter int M           = 2,   // rows: activation vectors, 1 to 8
    parameter int N           = 64,  // columns: 1, 2, 4, … 128
    parameter int K           = 4,   // activations of a table, 2 to 6
    parameter int ACT_WIDTH   = 8,   // 2 to 8: signed integers; 16: binary16
    parameter int MAX_BITS    = 8,   // most bits of a weight, 1 to 8
    parameter int COLUMNS     = 8,   // columns of a beat of results: 1, 2, … N
    parameter int GUARD       = 0,   // binary16: bits kept below the significand, 0 to 29
    parameter int TABLE_WIDTH = 0,   // binary16: bits to which a table entry is rounded; 0: not rounded
    parameter int HALF        = 0,   // binary16: 1 for results in binary16, 0 in binary32
    parameter int ACC_WIDTH   = 32   // accumulator
) (
    input  wire                   clk_i,
    input  wire                   rst_ni,
    input  wire                   act_valid_i,
    output logic                  act_ready_o,
    input  wire  [M*K*ACT_WIDTH-1:0] act_i,
    input  wire  [           2:0] bits_i,
    input  wire                   odd_i,
    input  wire                   last_i,
    input  wire                   weight_valid_i,
    output logic                  weight_ready_o,
    input  wire  [       N*K-1:0] weight_i,
    output logic                  valid_o,
    input  wire                   ready_i,
    output logic [M*COLUMNS*(ACT_WIDTH != 16 ? ACC_WIDTH : HALF != 0 ? 16 : 32)-1:0] sum_o,
    output logic [ M*COLUMNS-1:0] overflow_o,
    output logic [         M-1:0] invalid_o
);

  localparam int ValueWidth = ACT_WIDTH == 16 ? 12 + GUARD : ACT_WIDTH;  // of an aligned activation
  localparam int Full = ValueWidth + $clog2(K);  // of an exact table entry
  localparam int EntryWidth = TABLE_WIDTH == 0 ? Full : TABLE_WIDTH;
  localparam int Shift = ACT_WIDTH == 16 ? 29 : 0;
  localparam int ResultWidth = ACT_WIDTH != 16 ? ACC_WIDTH : HALF != 0 ? 16 : 32;

  // The words are those of cycles.py; a test holds them equal.
  if (M < 1 || M > 8) begin : g_check_m
    `TOKENFAB_STOP(M, "lut_tensor_unit: M must be from 1 to 8")
  end
  if (N < 1 || N > 128 || (N & (N - 1)) != 0) begin : g_check_n
    `TOKENFAB_STOP(N, "lut_tensor_unit: N must be a power of two from 1 to 128")
  end
  if (K < 2 || K > 6) begin : g_check_k
    `TOKENFAB_STOP(K, "lut_tensor_unit: K must be from 2 to 6")
  end
  if (ACT_WIDTH < 2 || (ACT_WIDTH > 8 && ACT_WIDTH != 16)) begin : g_check_act_width
    `TOKENFAB_STOP(ACT_WIDTH, "lut_tensor_unit: ACT_WIDTH must be from 2 to 8, or 16 for binary16")
  end
  if (MAX_BITS < 1 || MAX_BITS > 8) begin : g_check_max_bits
    `TOKENFAB_STOP(MAX_BITS, "lut_tensor_unit: MAX_BITS must be from 1 to 8")
  end
  if (COLUMNS < 1 || COLUMNS > N || (COLUMNS & (COLUMNS - 1)) != 0) begin : g_check_columns
    `TOKENFAB_STOP(COLUMNS, "lut_tensor_unit: COLUMNS must be a power of two from 1 to N")
  end
  if (GUARD < 0 || GUARD > 29 || (GUARD != 0 && ACT_WIDTH != 16)) begin : g_check_guard
    `TOKENFAB_STOP(GUARD, "lut_tensor_unit: GUARD must be from 0 to 29, and 0 unless ACT_WIDTH is 16")
  end
  if (TABLE_WIDTH != 0 && (ACT_WIDTH != 16 || TABLE_WIDTH < 4 || TABLE_WIDTH > Full)) begin : g_check_table_width
    `TOKENFAB_STOP(TABLE_WIDTH,
                   "lut_tensor_unit: TABLE_WIDTH must be 0, or with ACT_WIDTH = 16 from 4 to 12 + GUARD + log2(K)")
  end
  if (HALF < 0 || HALF > 1 || (HALF != 0 && ACT_WIDTH != 16)) begin : g_check_half
    `TOKENFAB_STOP(HALF, "lut_tensor_unit: HALF must be 0 or 1, and 0 unless ACT_WIDTH is 16")
  end
  if (ACC_WIDTH > 80 || ACC_WIDTH < EntryWidth + MAX_BITS + Shift) begin : g_check_acc_width
    `TOKENFAB_STOP(ACC_WIDTH,
                   "lut_tensor_unit: ACC_WIDTH must be from entry + MAX_BITS (+ 29 with binary16) to 80")
  end

  localparam int Entries = 1 << (K - 1);
  localparam int TableBits = Entries * EntryWidth;
  localparam int Beats = (N + COLUMNS - 1) / COLUMNS;  // rounded up: a COLUMNS beyond N is left to its check
  localparam int LeftWidth = $clog2(Beats + 1);
  localparam int BeatBits = M * COLUMNS * (ACC_WIDTH + 1);

  // -- handshakes: activations -> aligned -> table; planes -> partial -> group -> accumulator -> bank ------
  logic en;  // everything from the planes to the accumulator moves
  logic aligned_valid_q, table_valid_q, done_q, add_q;
  logic load_table, take, table_done, first_plane, done, add;
  logic [2:0] plane_q;  // planes of this group that were taken
  logic [2:0] aligned_bits_q, table_bits_q;
  logic aligned_odd_q, table_odd_q, done_odd_q;
  logic aligned_last_q, table_last_q, done_last_q, add_last_q;

  assign weight_ready_o = table_valid_q && en;
  assign take = weight_valid_i && weight_ready_o;
  assign table_done = take && plane_q == table_bits_q;
  assign first_plane = plane_q == '0;
  assign done = en && done_q;
  assign add = en && add_q;
  assign load_table = aligned_valid_q && (!table_valid_q || table_done);
  assign act_ready_o = !aligned_valid_q || load_table;

  always_ff @(posedge clk_i) begin
    if (!rst_ni) begin
      aligned_valid_q <= 1'b0;
      table_valid_q <= 1'b0;
      done_q <= 1'b0;
      add_q <= 1'b0;
      plane_q <= '0;
    end else begin
      if (act_ready_o) aligned_valid_q <= act_valid_i;
      if (load_table || table_done) table_valid_q <= load_table;
      if (take) plane_q <= table_done ? '0 : plane_q + 3'd1;
      if (en) begin
        done_q <= table_done;
        add_q  <= done_q;
      end
    end
  end

  always_ff @(posedge clk_i) begin
    if (act_valid_i && act_ready_o) begin
      aligned_bits_q <= int'(bits_i) >= MAX_BITS ? 3'(MAX_BITS - 1) : bits_i;
      aligned_odd_q  <= odd_i;
      aligned_last_q <= last_i;
    end
    if (load_table) begin
      table_bits_q <= aligned_bits_q;
      table_odd_q  <= aligned_odd_q;
      table_last_q <= aligned_last_q;
    end
    if (table_done) begin
      done_odd_q  <= table_odd_q;
      done_last_q <= table_last_q;
    end
    if (done) add_last_q <= done_last_q;
  end

  // -- rows: align, make the table; keep of it what the group needs when the next one has taken its place --
  logic [M*TableBits-1:0] table_q;
  logic [M*EntryWidth-1:0] constant_q;  // the entry with all signs plus
  logic [M*5-1:0] table_shift_q, done_shift_q, add_shift_q;
  logic [M-1:0] table_special_q, done_special_q, add_special_q;
  for (genvar m = 0; m < M; m++) begin : g_row
    logic [K*ValueWidth-1:0] value, value_q;
    logic [4:0] shift, shift_q;
    logic special, special_q;
    logic [TableBits-1:0] entries;

    if (ACT_WIDTH == 16) begin : g_align
      lut_align #(
          .K    (K),
          .GUARD(GUARD)
      ) u_align (
          .act_i     (act_i[m*K*16+:K*16]),
          .value_o   (value),
          .exponent_o(shift),
          .special_o (special)
      );
    end else begin : g_integer
      assign value = act_i[m*K*ACT_WIDTH+:K*ACT_WIDTH];
      assign shift = '0;
      assign special = 1'b0;
    end

    lut_table #(
        .K          (K),
        .WIDTH      (ValueWidth),
        .TABLE_WIDTH(EntryWidth)
    ) u_table (
        .value_i(value_q),
        .table_o(entries)
    );

    always_ff @(posedge clk_i) begin
      if (act_valid_i && act_ready_o) begin
        value_q   <= value;
        shift_q   <= shift;
        special_q <= special;
      end
      if (load_table) begin
        table_q[m*TableBits+:TableBits] <= entries;
        table_shift_q[m*5+:5] <= shift_q;
        table_special_q[m] <= special_q;
      end
      if (table_done) begin
        constant_q[m*EntryWidth+:EntryWidth] <= table_q[m*TableBits+(Entries-1)*EntryWidth+:EntryWidth];
        done_shift_q[m*5+:5] <= table_shift_q[m*5+:5];
        done_special_q[m] <= table_special_q[m];
      end
      if (done) begin
        add_shift_q[m*5+:5] <= done_shift_q[m*5+:5];
        add_special_q[m] <= done_special_q[m];
      end
    end
  end

  // -- lanes ------------------------------------------------------------------------------------------
  logic first_q;  // the next group begins a tile
  logic [Beats*BeatBits-1:0] totals;  // {overflow, sum} at place n * M + m
  for (genvar n = 0; n < N; n++) begin : g_column
    for (genvar m = 0; m < M; m++) begin : g_lane
      lut_lane #(
          .K          (K),
          .TABLE_WIDTH(EntryWidth),
          .MAX_BITS   (MAX_BITS),
          .SHIFT      (Shift),
          .ACC_WIDTH  (ACC_WIDTH)
      ) u_lane (
          .clk_i,
          .table_i   (table_q[m*TableBits+:TableBits]),
          .code_i    (weight_i[n*K+:K]),
          .take_i    (take),
          .first_i   (first_plane),
          .done_i    (done),
          .constant_i(constant_q[m*EntryWidth+:EntryWidth]),
          .odd_i     (done_odd_q),
          .add_i     (add),
          .clear_i   (first_q),
          .shift_i   (add_shift_q[m*5+:5]),
          .sum_o     (totals[(n*M+m)*(ACC_WIDTH+1)+:ACC_WIDTH]),
          .overflow_o(totals[(n*M+m)*(ACC_WIDTH+1)+ACC_WIDTH])
      );
    end
  end

  // -- bank: a finished tile leaves it beat by beat while the next one is computed ---------------------
  logic [LeftWidth-1:0] left_q;  // beats in the bank
  logic [Beats*BeatBits-1:0] bank_q;
  logic [M-1:0] invalid, invalid_q, bank_invalid_q;
  logic free, shift_out, load_bank;
  assign free = ready_i || !valid_o;
  assign shift_out = left_q != '0 && free;
  assign en = !(add_q && add_last_q) || left_q == '0 || (left_q == LeftWidth'(1) && free);
  assign load_bank = add && add_last_q;
  assign invalid = add_special_q | (first_q ? '0 : invalid_q);

  always_ff @(posedge clk_i) begin
    if (!rst_ni) begin
      first_q <= 1'b1;
      left_q  <= '0;
      valid_o <= 1'b0;
    end else begin
      if (add) first_q <= add_last_q;
      if (load_bank) left_q <= LeftWidth'(Beats);
      else if (shift_out) left_q <= left_q - LeftWidth'(1);
      if (free) valid_o <= left_q != '0;
    end
  end

  always_ff @(posedge clk_i) begin
    if (add) invalid_q <= invalid;
    if (load_bank) begin
      bank_q <= totals;
      bank_invalid_q <= invalid;
    end else if (shift_out) bank_q <= bank_q >> BeatBits;
    if (shift_out) invalid_o <= bank_invalid_q;
  end

  for (genvar i = 0; i < M * COLUMNS; i++) begin : g_result
    logic [ACC_WIDTH-1:0] total;
    logic [ResultWidth-1:0] result;
    logic overflow;
    assign total = bank_q[i*(ACC_WIDTH+1)+:ACC_WIDTH];
    if (ACT_WIDTH == 16) begin : g_float
      logic [ResultWidth-1:0] rounded;
      logic infinite;
      lut_round #(
          .ACC_WIDTH(ACC_WIDTH),
          .UNIT     (Full - EntryWidth - 24 - GUARD),
          .HALF     (HALF)
      ) u_round (
          .total_i   (total),
          .float_o   (rounded),
          .overflow_o(infinite)
      );
      assign result = !bank_invalid_q[i%M] ? rounded : HALF != 0 ? ResultWidth'(16'h7E00) : ResultWidth'(32'h7FC00000);
      assign overflow = !bank_invalid_q[i%M] && (infinite || bank_q[i*(ACC_WIDTH+1)+ACC_WIDTH]);
    end else begin : g_integer
      assign result = total;
      assign overflow = bank_q[i*(ACC_WIDTH+1)+ACC_WIDTH];
    end
    always_ff @(posedge clk_i) begin
      if (shift_out) begin
        sum_o[i*ResultWidth+:ResultWidth] <= result;
        overflow_o[i] <= overflow;
      end
    end
  end

endmodule

`default_nettype wire
