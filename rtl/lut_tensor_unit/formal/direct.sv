// The LUT tensor unit against a direct dot product: what is proven is `assert` at the end.
//
// Raw two's complement or odd weights come with the activations of their group; the planes are made of them
// here, as kernels.lut.codes does. Beside it products are multiplied and added. All inputs are free: numbers,
// widths, ends of tiles, idles of both inputs, stalls of the output. Integers only; ACC_WIDTH so wide that
// nothing saturates within the cycles looked at.
`default_nettype none

module direct #(
    parameter int N         = 1,
    parameter int K         = 4,
    parameter int ACT_WIDTH = 4,
    parameter int MAX_BITS  = 2,
    parameter int ACC_WIDTH = 12,
    parameter int FREE      = 1    // 0: one reset, no idles, no stalls, tiles of one group
) (
    input wire                    clk_i,
    input wire                    free_rst_ni,
    input wire                    free_act_valid_i,
    input wire [K*ACT_WIDTH-1:0]  act_i,
    input wire [N*K*MAX_BITS-1:0] raw_i,  // weight k of column n at place n * K + k, MAX_BITS bits
    input wire [2:0]              bits_i,
    input wire                    odd_i,
    input wire                    free_last_i,
    input wire                    free_weight_valid_i,
    input wire                    free_ready_i
);

  // Nothing is claimed before the first reset.
  logic seen_q = 1'b0;
  always_ff @(posedge clk_i) if (!rst_ni) seen_q <= 1'b1;

  wire rst_ni = FREE != 0 ? free_rst_ni : seen_q;
  wire act_valid_i = FREE == 0 || free_act_valid_i;
  wire weight_valid_i = FREE == 0 || free_weight_valid_i;
  wire last_i = FREE == 0 || free_last_i;
  wire ready_i = FREE == 0 || free_ready_i;

  logic act_ready, weight_ready, valid, invalid;
  logic [N*K-1:0] plane;
  logic [N*ACC_WIDTH-1:0] sum;
  logic [N-1:0] overflow;
  wire [2:0] bits = int'(bits_i) >= MAX_BITS ? 3'(MAX_BITS - 1) : bits_i;
  wire act_taken = act_valid_i && act_ready;
  wire weight_taken = weight_valid_i && weight_ready;

  lut_tensor_unit #(
      .M(1),
      .N(N),
      .K(K),
      .ACT_WIDTH(ACT_WIDTH),
      .MAX_BITS(MAX_BITS),
      .COLUMNS(N),
      .ACC_WIDTH(ACC_WIDTH)
  ) u_unit (
      .clk_i,
      .rst_ni,
      .act_valid_i,
      .act_ready_o(act_ready),
      .act_i,
      .bits_i,
      .odd_i,
      .last_i,
      .weight_valid_i,
      .weight_ready_o(weight_ready),
      .weight_i(plane),
      .valid_o(valid),
      .ready_i,
      .sum_o(sum),
      .overflow_o(overflow),
      .invalid_o(invalid)
  );

  // -- weights under way: those of the table (0) and of the group behind it (1) ----------------------------
  logic [2*N*K*MAX_BITS-1:0] raw_q;
  logic [5:0] bits_q;
  logic [1:0] odd_q, held_q;
  logic [2:0] place_q;
  wire group_done = weight_taken && place_q == bits_q[2:0];
  always_ff @(posedge clk_i) begin
    if (!rst_ni) begin
      held_q  <= '0;
      place_q <= '0;
    end else begin
      if (weight_taken) place_q <= group_done ? '0 : place_q + 3'd1;
      held_q <= held_q + 2'(act_taken) - 2'(group_done);
    end
    if (group_done) begin
      raw_q[N*K*MAX_BITS-1:0] <= raw_q[2*N*K*MAX_BITS-1:N*K*MAX_BITS];
      bits_q[2:0] <= bits_q[5:3];
      odd_q[0] <= odd_q[1];
    end
    if (act_taken) begin
      if (held_q - 2'(group_done) == 2'd0) begin
        raw_q[N*K*MAX_BITS-1:0] <= raw_i;
        bits_q[2:0] <= bits;
        odd_q[0] <= odd_i;
      end else begin
        raw_q[2*N*K*MAX_BITS-1:N*K*MAX_BITS] <= raw_i;
        bits_q[5:3] <= bits;
        odd_q[1] <= odd_i;
      end
    end
  end

  // -- codes: bit `bits - place` of every weight, top bit inverted; turned round where input K-1 is negative --
  for (genvar n = 0; n < N; n++) begin : g_code
    logic [K-1:0] plus;
    for (genvar k = 0; k < K; k++) begin : g_bit
      wire [MAX_BITS-1:0] word = raw_q[(n*K+k)*MAX_BITS+:MAX_BITS];
      wire chosen = word[bits_q[2:0]-place_q];
      assign plus[k] = chosen ^ (place_q == '0 && !odd_q[0]);
    end
    assign plane[n*K+:K] = {!plus[K-1], plus[K-2:0] ~^ {(K - 1) {plus[K-1]}}};
  end

  // -- the direct product. v: the lowest W bits as two's complement; an odd weight is 2 v' + 1, where v' is v
  //    with its top bit inverted ----------------------------------------------------------------------------
  for (genvar n = 0; n < N; n++) begin : g_direct
    logic signed [ACC_WIDTH-1:0] dot, running_q;
    for (genvar k = 0; k < K; k++) begin : g_product
      logic signed [ACT_WIDTH-1:0] act;
      logic signed [MAX_BITS-1:0] high, v;
      logic signed [MAX_BITS:0] weight;
      logic signed [ACT_WIDTH+MAX_BITS:0] product;
      assign act = act_i[k*ACT_WIDTH+:ACT_WIDTH];
      assign high = (raw_i[(n*K+k)*MAX_BITS+:MAX_BITS] << (3'(MAX_BITS - 1) - bits)) ^ (MAX_BITS'(odd_i) << (MAX_BITS - 1));
      assign v = high >>> (3'(MAX_BITS - 1) - bits);
      assign weight = odd_i ? {v, 1'b1} : {v[MAX_BITS-1], v};
      assign product = act * weight;
    end
    for (genvar k = 0; k < K; k++) begin : g_sum
      logic signed [ACC_WIDTH-1:0] sum;
      if (k == 0) assign sum = ACC_WIDTH'(g_product[0].product);
      else assign sum = g_sum[k-1].sum + ACC_WIDTH'(g_product[k].product);
    end
    assign dot = g_sum[K-1].sum;
    always_ff @(posedge clk_i) begin
      if (!rst_ni) running_q <= '0;
      else if (act_taken) running_q <= last_i ? '0 : running_q + dot;
    end
    wire given = valid && ready_i;
    wire finished = act_taken && last_i;
    logic [2:0] count_q;
    always_ff @(posedge clk_i) begin
      if (!rst_ni) count_q <= '0;
      else count_q <= count_q + 3'(finished) - 3'(given);
    end
    for (genvar i = 0; i < 6; i++) begin : g_wanted
      // a queue: entry i moves to i - 1 when a result is given
      logic [ACC_WIDTH-1:0] word_q;
      wire [2:0] left = count_q - 3'(given);
      always_ff @(posedge clk_i) begin
        if (finished && left == 3'(i)) word_q <= running_q + dot;
        else if (given) word_q <= g_next[i].word;
      end
    end
    for (genvar i = 0; i < 6; i++) begin : g_next
      wire [ACC_WIDTH-1:0] word;
      if (i == 5) assign word = '0;
      else assign word = g_wanted[i+1].word_q;
    end
    always_comb begin
      if (seen_q && valid) begin
        assert (count_q != '0);
        assert (sum[n*ACC_WIDTH+:ACC_WIDTH] == g_wanted[0].word_q);
        assert (!overflow[n]);
      end
    end
  end
  always_comb if (seen_q && valid) assert (!invalid);

endmodule

`default_nettype wire
