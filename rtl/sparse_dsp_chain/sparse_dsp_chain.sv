// A chain of DSP48 slices that skips the zeros of N:M sparse weights (after FlightLLM, FPGA'24, 3.2.1).
//
// One beat feeds every slice ("lane") with one stored weight and lets its index choose the activation:
//
//   lane l of a beat in mode s (= sparsity_i), N = M >> s weights stored per block of M:
//     block       l / N
//     activation  act_i[p][block * M + (s == 0 ? l % M : index_i[l])]      p = 0 .. PACK-1
//
// so that a beat of LANES weights covers LANES << s inputs of the dot product. A beat with last_i ends
// the dot product; sum_o[p] is the sum over its beats, and overflow_o[p] says whether it met a bound.
//
//   act_i      PACK vectors of LANES * M / N_MIN bytes, signed; what mode s does not reach is ignored
//   weight_i   LANES weights of WEIGHT_WIDTH bits, signed; lane 0 in the lowest bits
//   index_i    LANES indices of log2(M) bits; ignored in the dense mode (s = 0)
//   sparsity_i s = log2(M / N), 0 .. log2(M / N_MIN); a greater value is taken as log2(M / N_MIN)
//
// Overflow: cascades of SEGMENT slices are exact (see the README); the sum over a beat is exact; the
// accumulator saturates at ACC_WIDTH bits after every beat and overflow_o stays set to the end.
//
// Timing: valid/ready on both sides, one beat per cycle. A result is offered
// SEGMENT + 5 + log2(LANES / SEGMENT) cycles after the cycle that took its last beat. ready_o depends on
// ready_i combinationally: while a result waits the whole unit stands still. Reset is synchronous.
`default_nettype none
`include "check.svh"

module sparse_dsp_chain #(
    parameter int LANES        = 16,  // slices: 2, 4, … 64, a multiple of M
    parameter int M            = 16,  // inputs of a block: 2, 4, 8, 16
    parameter int N_MIN        = 2,   // fewest weights stored per block: 1, 2, … M
    parameter int SEGMENT      = 8,   // slices of one PCIN-PCOUT cascade: 1, 2, … LANES
    parameter int PACK         = 2,   // activation vectors that share a beat's weights: 1, 2
    parameter int WEIGHT_WIDTH = 8,   // 4, 8
    parameter int ACC_WIDTH    = 32   // accumulator and output, up to 48 bits
) (
    input  wire                              clk_i,
    input  wire                              rst_ni,
    input  wire                              valid_i,
    output logic                             ready_o,
    input  wire  [PACK*(LANES*M/N_MIN)*8-1:0] act_i,
    input  wire  [     LANES*WEIGHT_WIDTH-1:0] weight_i,
    input  wire  [        LANES*$clog2(M)-1:0] index_i,
    input  wire  [                       2:0] sparsity_i,
    input  wire                              last_i,
    output logic                             valid_o,
    input  wire                              ready_i,
    output logic [        PACK*ACC_WIDTH-1:0] sum_o,
    output logic [                  PACK-1:0] overflow_o
);

  // The words are those of cycles.py; a test holds them equal.
  if (LANES < 2 || LANES > 64 || (LANES & (LANES - 1)) != 0) begin : g_check_lanes
    `TOKENFAB_STOP(LANES, "sparse_dsp_chain: LANES must be a power of two from 2 to 64")
  end
  if (M < 2 || M > 16 || (M & (M - 1)) != 0 || M > LANES) begin : g_check_m
    `TOKENFAB_STOP(M, "sparse_dsp_chain: M must be 2, 4, 8 or 16 and at most LANES")
  end
  if (N_MIN < 1 || N_MIN > M || (N_MIN & (N_MIN - 1)) != 0) begin : g_check_n_min
    `TOKENFAB_STOP(N_MIN, "sparse_dsp_chain: N_MIN must be a power of two from 1 to M")
  end
  if (PACK < 1 || PACK > 2) begin : g_check_pack
    `TOKENFAB_STOP(PACK, "sparse_dsp_chain: PACK must be 1 or 2")
  end
  if (WEIGHT_WIDTH != 4 && WEIGHT_WIDTH != 8) begin : g_check_weight_width
    `TOKENFAB_STOP(WEIGHT_WIDTH, "sparse_dsp_chain: WEIGHT_WIDTH must be 4 or 8")
  end
  if (SEGMENT < 1 || SEGMENT > LANES || (SEGMENT & (SEGMENT - 1)) != 0) begin : g_check_segment
    `TOKENFAB_STOP(SEGMENT, "sparse_dsp_chain: SEGMENT must be a power of two from 1 to LANES")
  end
  if (PACK == 2 && WEIGHT_WIDTH == 8 && SEGMENT > 8) begin : g_check_headroom
    `TOKENFAB_STOP(SEGMENT, "sparse_dsp_chain: SEGMENT must be at most 8 with PACK = 2 and WEIGHT_WIDTH = 8")
  end
  if (ACC_WIDTH > 48 || ACC_WIDTH < 8 + WEIGHT_WIDTH + $clog2(LANES)) begin : g_check_acc_width
    `TOKENFAB_STOP(ACC_WIDTH, "sparse_dsp_chain: ACC_WIDTH must be from 8 + WEIGHT_WIDTH + log2(LANES) to 48")
  end

  localparam int Window = LANES * M / N_MIN;  // activations of a beat
  localparam int Modes = $clog2(M / N_MIN) + 1;
  localparam int ModeWidth = Modes > 1 ? $clog2(Modes) : 1;
  localparam int IndexWidth = $clog2(M);
  localparam int Segments = LANES / SEGMENT;
  localparam int Levels = $clog2(Segments);
  localparam int SumWidth = 8 + WEIGHT_WIDTH + $clog2(LANES);  // any sum over a beat
  localparam int Depth = SEGMENT + 4 + Levels;  // edges from a beat to the accumulator's input
  localparam int OperandWidth = PACK == 2 ? 27 : 8;

  // -- one enable for everything --------------------------------------------------------------------
  logic en;
  assign en = ready_i || !valid_o;
  assign ready_o = en;

  logic [Depth-1:0] valid_q;
  logic             last;
  always_ff @(posedge clk_i) begin
    if (!rst_ni) valid_q <= '0;
    else if (en) valid_q <= {valid_q[Depth-2:0], valid_i};
  end
  delay_line #(
      .WIDTH(1),
      .DEPTH(Depth)
  ) u_last (
      .clk_i,
      .en_i  (en),
      .data_i(last_i),
      .data_o(last)
  );

  // -- lanes: choose the activations, wait for the cascade, multiply ---------------------------------
  logic [ModeWidth-1:0] mode;
  assign mode = int'(sparsity_i) >= Modes ? ModeWidth'(Modes - 1) : ModeWidth'(sparsity_i);

  logic [LANES*48-1:0] pout;  // P of every slice
  for (genvar l = 0; l < LANES; l++) begin : g_lane
    localparam int Position = l % SEGMENT;
    logic [IndexWidth-1:0] index;
    assign index = mode == '0 ? IndexWidth'(l % M) : index_i[l*IndexWidth+:IndexWidth];

    logic [PACK*8-1:0] chosen;
    for (genvar p = 0; p < PACK; p++) begin : g_pack
      logic [Modes*M*8-1:0] block;  // the block of this lane, mode by mode
      for (genvar s = 0; s < Modes; s++) begin : g_mode
        localparam int First = (l / (M >> s)) * M;
        assign block[s*M*8+:M*8] = act_i[(p*Window+First)*8+:M*8];
      end
      logic [M*8-1:0] in_mode;
      assign in_mode = block[int'(mode)*M*8+:M*8];
      assign chosen[p*8+:8] = in_mode[int'(index)*8+:8];
    end

    logic [PACK*8-1:0] act;
    logic [WEIGHT_WIDTH-1:0] weight;
    delay_line #(
        .WIDTH(PACK * 8 + WEIGHT_WIDTH),
        .DEPTH(Position)
    ) u_skew (
        .clk_i,
        .en_i  (en),
        .data_i({weight_i[l*WEIGHT_WIDTH+:WEIGHT_WIDTH], chosen}),
        .data_o({weight, act})
    );

    logic [OperandWidth-1:0] low, high;
    assign low = OperandWidth'($signed(act[7:0]));
    if (PACK == 2) begin : g_high
      assign high = {act[15], act[15:8], 18'b0};
    end else begin : g_no_high
      assign high = '0;
    end

    if (Position == 0) begin : g_head  // begins a cascade
      dsp48e2_slice #(
          .A_WIDTH(OperandWidth),
          .B_WIDTH(WEIGHT_WIDTH),
          .PREADD (int'(PACK == 2)),
          .CASCADE(0)
      ) u_slice (
          .clk_i,
          .en_i  (en),
          .a_i   (low),
          .d_i   (high),
          .b_i   (weight),
          .pcin_i(48'b0),
          .p_o   (pout[l*48+:48])
      );
    end else begin : g_next
      dsp48e2_slice #(
          .A_WIDTH(OperandWidth),
          .B_WIDTH(WEIGHT_WIDTH),
          .PREADD (int'(PACK == 2)),
          .CASCADE(1)
      ) u_slice (
          .clk_i,
          .en_i  (en),
          .a_i   (low),
          .d_i   (high),
          .b_i   (weight),
          .pcin_i(pout[(l-1)*48+:48]),
          .p_o   (pout[l*48+:48])
      );
    end
  end

  // -- reduction: unpack the end of every cascade, add the cascades ----------------------------------
  // P = high * 2^18 + low. The low sum lies in -(2^17 - 2^10) .. 2^17, because a product lies in
  // -127 * 2^(WEIGHT_WIDTH-1) .. 2^(WEIGHT_WIDTH+6): of the two readings of 18'h20000 only +2^17 occurs.
  // A negative low sum has borrowed one from the high one.
  for (genvar k = 0; k <= Levels; k++) begin : g_level
    logic [PACK*(Segments>>k)*SumWidth-1:0] node_q;
    for (genvar i = 0; i < (Segments >> k); i++) begin : g_node
      if (k == 0) begin : g_unpack
        logic [47:0] p;
        assign p = pout[((i+1)*SEGMENT-1)*48+:48];
        if (PACK == 2) begin : g_two
          logic negative;
          logic [29:0] high;
          wire unused_sign = ^high[29:SumWidth];
          assign negative = p[17] && p[16:0] != '0;
          assign high = p[47:18] + 30'(negative);
          always_ff @(posedge clk_i) begin
            if (en) begin
              node_q[i*SumWidth+:SumWidth] <= SumWidth'($signed({negative, p[17:0]}));
              node_q[(Segments+i)*SumWidth+:SumWidth] <= high[SumWidth-1:0];
            end
          end
        end else begin : g_one
          wire unused_upper = ^p[47:SumWidth];
          always_ff @(posedge clk_i) begin
            if (en) node_q[i*SumWidth+:SumWidth] <= p[SumWidth-1:0];
          end
        end
      end else begin : g_add
        for (genvar p = 0; p < PACK; p++) begin : g_pack
          always_ff @(posedge clk_i) begin
            if (en) begin
              node_q[(p*(Segments>>k)+i)*SumWidth+:SumWidth] <=
                  g_level[k-1].node_q[(p*(Segments>>(k-1))+2*i)*SumWidth+:SumWidth] +
                  g_level[k-1].node_q[(p*(Segments>>(k-1))+2*i+1)*SumWidth+:SumWidth];
            end
          end
        end
      end
    end
  end

  // -- accumulate over the beats of a dot product; saturate -----------------------------------------
  logic first_q;  // the next beat begins a dot product
  logic take;
  assign take = en && valid_q[Depth-1];
  always_ff @(posedge clk_i) begin
    if (!rst_ni) begin
      valid_o <= 1'b0;
      first_q <= 1'b1;
    end else begin
      if (en) valid_o <= valid_q[Depth-1] && last;
      if (take) first_q <= last;
    end
  end

  for (genvar p = 0; p < PACK; p++) begin : g_accumulate
    logic signed [ACC_WIDTH:0] wide;  // one bit more than the accumulator
    logic beyond;
    assign wide = (ACC_WIDTH + 1)'($signed(g_level[Levels].node_q[p*SumWidth+:SumWidth])) +
                  (first_q ? '0 : (ACC_WIDTH + 1)'($signed(sum_o[p*ACC_WIDTH+:ACC_WIDTH])));
    assign beyond = wide[ACC_WIDTH] != wide[ACC_WIDTH-1];
    always_ff @(posedge clk_i) begin
      if (take) begin
        sum_o[p*ACC_WIDTH+:ACC_WIDTH] <= beyond ? {wide[ACC_WIDTH], {(ACC_WIDTH - 1) {!wide[ACC_WIDTH]}}}
                                                : wide[ACC_WIDTH-1:0];
        overflow_o[p] <= beyond || (overflow_o[p] && !first_q);
      end
    end
  end

endmodule

`default_nettype wire
